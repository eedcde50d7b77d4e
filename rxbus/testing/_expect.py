"""What is to come: events, and failures that no publisher is told of."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from reactivex import abc
from reactivex.internal import ArgumentOutOfRangeException

from rxbus import Event, EventBus, InvalidArgument, Receipt, Topic, VirtualClock, matcher

T = TypeVar("T")

LATEST = 5  # how many events a message shows
WIDEST = 200  # characters of one event in a message
ROUNDS = 10  # of an event loop, before virtual time passes


class expect(Generic[T]):
    """Waits for an event: `with expect(bus, "orders.*", lambda event: event.payload > 3) as found: ...; found.event`.

    It looks from the beginning of the block on, and waits at its end, where the event has not come yet. `async with`
    does the same on an event loop; `await expect(...)`, and `expect(...).wait()`, wait for one that is published from
    now on, and give it. In virtual time they let that pass. Nothing is attached that a publisher would wait for or
    count: it is told by the bus's tap of what is published, before anybody has handled it.

    Args:
        bus: Where the event is published.
        topic: A topic, its name, or a pattern.
        predicate: Takes an event, says whether it is the one; None: any is. What it raises is raised at the end.
        timeout: Seconds to wait at most.

    Raises:
        AssertionError: None has come in time; the message shows what has come instead.
        InvalidArgument: `timeout` is no time.
        InvalidTopic: `topic` is neither a topic nor a pattern.
        BusClosed: The bus has been closed.
    """

    @overload
    def __init__(
        self,
        bus: EventBus,
        topic: Topic[T],
        predicate: Callable[[Event[T]], object] | None = None,
        timeout: float = 5.0,
    ) -> None: ...
    @overload
    def __init__(
        self: expect[Any],
        bus: EventBus,
        topic: str,
        predicate: Callable[[Event[Any]], object] | None = None,
        timeout: float = 5.0,
    ) -> None: ...
    def __init__(
        self,
        bus: EventBus,
        topic: str | Topic[Any],
        predicate: Callable[[Event[Any]], object] | None = None,
        timeout: float = 5.0,
    ) -> None:
        if not timeout >= 0:
            raise InvalidArgument(f"timeout is a number of seconds from 0 on, not {timeout!r}")
        self._bus = bus
        self._topic = str(topic)
        self._matches = matcher(self._topic)
        self._predicate = predicate
        self._timeout = timeout
        self._attached: abc.DisposableBase | None = None
        self._rung = threading.Event()
        self._ring_loop: Callable[[], object] = lambda: None
        self._error: Exception | None = None
        self._rejected: deque[Event[Any]] = deque(maxlen=LATEST)
        self._counts: Counter[str] = Counter()  # of other events, by topic
        self.events: list[Event[T]] = []  # all that have come by now

    @property
    def event(self) -> Event[T]:
        """The first that has come.

        Raises:
            AssertionError: None has, so far.
        """
        if not self.events:
            raise AssertionError(f"no event on {self._topic!r} has come yet")
        return self.events[0]

    def wait(self) -> Event[T]:
        """Waits for one that is published from now on, by another thread or, in virtual time, by what is timed."""
        with self:
            pass
        return self.event

    def published(self, event: Event[Any]) -> None:
        """See `Tracer`."""
        if not self._matches(event.topic):
            self._counts[event.topic] += 1
            return
        try:
            if self._predicate is None or self._predicate(event):
                self.events.append(event)
            else:
                self._rejected.append(event)
                self._counts[self._topic] += 1
                return
        except Exception as error:
            self._error = self._error or error
        self._rung.set()
        self._ring_loop()

    def delivered(
        self, event: Event[Any], observer: str, start: float, end: float, thread: str, error: BaseException | None
    ) -> None:
        """See `Tracer`."""

    def settled(self, receipt: Receipt) -> None:
        """See `Tracer`."""

    def __enter__(self) -> expect[T]:
        self._attached = self._bus.trace(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True  # pytest shows the test, not this
        try:
            if kind is None:
                self._wait()
        finally:
            self._detach()
        if kind is None:
            self._judge()

    async def __aenter__(self) -> expect[T]:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True  # pytest shows the test, not this
        try:
            if kind is None:
                await self._wait_async()
        finally:
            self._detach()
        if kind is None:
            self._judge()

    def __await__(self) -> Generator[Any, None, Event[T]]:
        return self._awaited().__await__()

    async def _awaited(self) -> Event[T]:
        async with self:
            pass
        return self.event

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.dispose()

    def _wait(self) -> None:
        clock = self._bus.scheduler.clock
        if clock is None:
            self._rung.wait(min(self._timeout, threading.TIMEOUT_MAX))
            return
        deadline = clock.seconds + self._timeout
        while not self._rung.is_set() and clock.step(deadline):
            pass
        self._end(clock, deadline)

    async def _wait_async(self) -> None:
        clock = self._bus.scheduler.clock
        if clock is None:
            await self._really_wait()
            return
        deadline = clock.seconds + self._timeout
        while not await self._has_rung() and clock.step(deadline):
            pass
        self._end(clock, deadline)

    def _end(self, clock: VirtualClock, deadline: float) -> None:
        if not self._rung.is_set():
            with suppress(ArgumentOutOfRangeException):  # it is over already; or lies beyond all dates
                clock.advance_to(deadline)

    async def _really_wait(self) -> None:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        self._ring_loop = lambda: loop.call_soon_threadsafe(rung.set)
        try:
            if not self._rung.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), self._timeout)
        finally:
            self._ring_loop = lambda: None

    async def _has_rung(self) -> bool:
        for _ in range(ROUNDS):  # what can go on does so, before time passes
            if self._rung.is_set():
                break
            await asyncio.sleep(0)
        return self._rung.is_set()

    def _judge(self) -> None:
        __tracebackhide__ = True  # pytest shows the test, not this
        if self._error is not None:
            raise self._error
        if not self.events:
            which = "" if self._predicate is None else f" that satisfies {_called(self._predicate)}"
            raise AssertionError(f"no event on {self._topic!r}{which} within {self._timeout:g} s; {self._what_came()}")

    def _what_came(self) -> str:
        if self._rejected:
            latest = "\n".join(f"  {_shortened(repr(event))}" for event in self._rejected)
            return f"others came on it, {self._counts[self._topic]} in all, the latest of which are\n{latest}"
        others = ", ".join(f"{topic!r} ({count})" for topic, count in self._counts.most_common(LATEST))
        return "nothing came on it" + (f", but on {others}" if others else ", nor on any other topic")


class Failures(logging.Handler):
    """What the logger `rxbus` tells of failures, which nobody else is told of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def attach(self) -> None:
        _logger.addHandler(self)

    def detach(self) -> str:
        """Hears no more; gives why it may have missed something, if it may."""
        _logger.removeHandler(self)
        if _logger.disabled:
            return "disabled, perhaps by disable_existing_loggers"
        return "" if _logger.isEnabledFor(logging.ERROR) else "by its level, or by logging.disable"

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @staticmethod
    def see(record: logging.LogRecord) -> None:
        """Somebody has looked at it."""
        record.__dict__["rxbus_seen"] = True

    @staticmethod
    def was_seen(record: logging.LogRecord) -> bool:
        return "rxbus_seen" in record.__dict__


_logger = logging.getLogger("rxbus")


class expect_failure(Failures):
    """Waits for a failure that no publisher is told of, and looks at it: `with expect_failure(OSError, match="disk"):`.

    Such as one behind `buffered`, or after a timeout; see `Check` for which these are. All that come in the block and
    match have been looked at then; at its end it waits for the first.

    Args:
        kind: The class of the exception.
        match: A regular expression that is found in its text.
        timeout: Seconds to wait at most.

    Raises:
        AssertionError: None has come in time.
    """

    def __init__(self, kind: type[BaseException] = Exception, match: str = "", timeout: float = 5.0) -> None:
        super().__init__()
        self._kind = kind
        self._match = re.compile(match)
        self._timeout = timeout
        self._rung = threading.Event()
        self._others: list[str] = []
        self.errors: list[BaseException] = []
        self.messages: list[str] = []  # what was logged with each; other handlers may not have it yet

    @property
    def error(self) -> BaseException:
        """The first that has come.

        Raises:
            AssertionError: None has, so far.
        """
        if not self.errors:
            raise AssertionError("no failure has come yet")
        return self.errors[0]

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, self._kind) and self._match.search(_harmless(error.__str__)):
            self.see(record)
            self.errors.append(error)
            self.messages.append(_harmless(record.getMessage))
            self._rung.set()
        else:
            self._others.append(tell(record))

    def __enter__(self) -> expect_failure:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True  # pytest shows the test, not this
        if kind is None:
            self._rung.wait(min(self._timeout, threading.TIMEOUT_MAX))
        off = self.detach()
        if kind is None and not self.errors:
            which = f" that matches {self._match.pattern!r}" if self._match.pattern else ""
            others = "; ".join(self._others) or "no other either"
            off = off and f" (the logger 'rxbus' is switched off: {off})"
            raise AssertionError(
                f"no {self._kind.__name__}{which} was left to the log within {self._timeout:g} s, {others}{off}"
            )


def tell(record: logging.LogRecord) -> str:
    """What a record of a failure says, in a line."""
    error = record.exc_info[1] if record.exc_info else None
    what = "" if error is None else f": {_shortened(_harmless(error.__repr__))}"
    return _shortened(_harmless(record.getMessage)) + what


def _called(predicate: object) -> str:
    name = getattr(predicate, "__qualname__", None) or repr(predicate)
    return "the predicate" if "<lambda>" in name else name.replace(".<locals>", "")


def _harmless(text: Callable[[], str]) -> str:
    """Text of an error, or of what a record is about: where that raises, this is no failure of who logs or looks."""
    try:
        return text()
    except Exception as error:
        return f"<what to say raised {type(error).__name__}>"


def _shortened(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
