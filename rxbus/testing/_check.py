"""What a test leaves behind: deliveries pending, threads running, failures that nobody looked at."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Literal, get_args

from rxbus import BlockingScheduler, EventBus, InvalidArgument, VirtualClock
from rxbus.testing._expect import Failures, tell

MOST = 10  # how much a message tells
MOMENT = 5.0  # seconds in which what still runs may come to its end

Allowed = Literal["failures", "pending", "threads"]


class Leftovers(AssertionError):
    """A test has left something behind; the message says what."""


class Check:
    """Sees to it that a block, as a rule a test, leaves nothing behind: `with Check() as check, check.bus() as bus:`.

    It fails on

    - *failures* that nobody looked at. A failure of a handler is told to somebody: it is in the `PublishError` that a
      publish raises, or in the notes of its `AcknowledgementTimeout`; then the code that has called publish can look at
      it, and to swallow that is its own decision. Where there is nobody to be told, as behind `buffered`, after a
      timeout, when a publisher was interrupted or cancelled, at an observer's end, for actions and sources that belong
      to no publish, the logger `rxbus` tells it, as an error. So the failures that nobody looked at are what is logged
      there on level ERROR and above, of whatever bus, while the block runs. Should that be switched off when the block
      ends, nobody could know, and the check fails.
    - deliveries *pending* on a bus of `check.bus()`: deferred and not acknowledged, in a coroutine that is not done, in
      a handler that still runs. What runs on workers may end within five seconds.
    - *threads* of rxbus that have come since the block began and still run, five seconds after it has ended and its own
      buses have been closed: a bus or a scheduler has not been closed.

    An exception that leaves the block goes before all that.

    Args:
        allow: What is not to fail: `"failures"`, `"pending"`, `"threads"`. A failure that is expected is better taken
            by `expect_failure`.

    Raises:
        InvalidArgument: There is no such thing to be allowed.
        Leftovers: At the end of the block: something is left behind.
    """

    def __init__(self, allow: Iterable[Allowed] = ()) -> None:
        allow = list(allow)
        unknown = [what for what in allow if what not in get_args(Allowed)]
        if unknown:
            raise InvalidArgument(f"what can be allowed is {', '.join(get_args(Allowed))}, not {unknown[0]!r}")
        self._allowed = set(allow)
        self._failures = Failures()
        self._before: set[threading.Thread] = set()
        self._found: list[tuple[Allowed, str]] = []

    def forgive(self) -> None:
        """Nothing that is left behind fails the block: it has failed already."""
        self._allowed = set(get_args(Allowed))

    @contextmanager
    def bus(self, scheduler: BlockingScheduler | None = None) -> Iterator[EventBus]:
        """Makes a bus, which is looked at and closed when its block ends."""
        bus = EventBus(scheduler)
        try:
            yield bus
        finally:
            self._look_at(bus)

    def __enter__(self) -> Check:
        self._before = set(threading.enumerate())
        self._failures.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.forgive()
        self._look_for_threads()
        self._look_for_failures()
        left = Counter(what for kind, what in self._found if kind not in self._allowed)
        if left:
            told = [f"- {what}" + (f" ({count} times)" if count > 1 else "") for what, count in left.items()]
            more = [f"- and {len(told) - MOST} more"] if len(told) > MOST else []
            raise Leftovers("\n".join(("left behind:", *told[:MOST], *more)))

    def _look_at(self, bus: EventBus) -> None:
        quiet = bus.scheduler.join(MOMENT)
        pending = {topic: counts.pending for topic, counts in bus.topic_statistics().items() if counts.pending}
        if quiet and not pending:
            bus.close()
            return
        # What does not come to its end would keep this thread, and with it all further tests.
        closing = threading.Thread(target=bus.close, name="rxbus-close", daemon=True)
        closing.start()
        closing.join(MOMENT)
        for topic, count in pending.items():
            self._found.append(("pending", f"deliveries pending on {topic!r}: {count}"))
        if closing.is_alive():
            self._found.append(("pending", "a bus that cannot be closed: something on it does not end"))

    def _look_for_failures(self) -> None:
        off = self._failures.detach()
        if off:
            doubt = f"failures, perhaps: the logger 'rxbus' is switched off ({off}), so nobody can know"
            self._found.append(("failures", doubt))
        for record in self._failures.records:
            if not Failures.was_seen(record):
                self._found.append(("failures", f"a failure that nobody looked at: {tell(record)}"))

    def _look_for_threads(self) -> None:
        deadline = monotonic() + MOMENT
        came = [thread for thread in threading.enumerate() if thread not in self._before and _is_ours(thread)]
        for thread in [] if "threads" in self._allowed else came:
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                what = f"a thread running: {thread.name}; has a bus or scheduler not been closed?"
                self._found.append(("threads", what))


def _is_ours(thread: threading.Thread) -> bool:
    """Whether it is one of rxbus that somebody has to end; spare ones, which belong to no bus, end by themselves."""
    return thread.name.startswith("rxbus-") and not thread.name.startswith("rxbus-spare-")


@contextmanager
def virtual_bus(*, allow: Iterable[Allowed] = (), stall_after: float = 5.0) -> Iterator[tuple[EventBus, VirtualClock]]:
    """Makes a bus in virtual time, and its clock: `with virtual_bus() as (bus, clock):`.

    Nothing waits, all runs on the calling thread, and is the same each time; see `VirtualClock`. It is checked as the
    fixtures are.

    Args:
        allow: See `Check`.
        stall_after: As for `BlockingScheduler`, in virtual seconds.

    Raises:
        Leftovers: At the end of the block: something is left behind.
    """
    clock = VirtualClock()
    scheduler = BlockingScheduler(max_workers=0, stall_after=stall_after, clock=clock)
    with Check(allow) as check, check.bus(scheduler) as bus:
        yield bus, clock
