"""Topics as Subjects, subscriptions as Observables, and the registry that knows which observers a topic has."""

from __future__ import annotations

import asyncio
import inspect
import os.path
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import copy_context
from types import FrameType
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

import reactivex
from reactivex import Observable, abc, typing
from reactivex.disposable import Disposable
from reactivex.internal.basic import default_error, noop
from reactivex.observer import AutoDetachObserver, Observer
from reactivex.subject import Subject

from rxbus import operators
from rxbus._acknowledgement import coroutine_delivery, current_delivery, local
from rxbus._delivery import DELIVERING, Attachment, Hub, Lane, Log, new_lane
from rxbus._event import Event, check_name, check_pattern, is_pattern, matcher
from rxbus.errors import BusClosed, InvalidArgument, RxBusError

T = TypeVar("T")

STREAM_CAPACITY = 64  # events that `async for` holds for a consumer that is slower than its publishers


class _Source(Observable[Event[T]]):
    """What one can subscribe to: a topic, or a subscription on a topic or pattern."""

    def __init__(self, registry: Registry, topic: str) -> None:
        Observable.__init__(self)
        self._registry = registry
        self._topic = topic

    def subscribe(
        self,
        on_next: abc.ObserverBase[Event[T]] | abc.OnNext[Event[T]] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        """Attaches an observer: from now on it gets every event, and `publish` waits for it.

        Args:
            on_next: An Rx observer, or a function that takes the event; an `async def` function too, where an event loop
                is running: it runs there, one event at a time, and publishers wait for it.
            on_error: Takes the error that ended the topic's stream.
            on_completed: Called when the stream ends: the topic or the bus was closed, or the subscription unsubscribed.
            scheduler: Not used: what is hot emits where it is published.

        Returns:
            What detaches the observer: after `dispose` it gets nothing more, and nobody waits for it.

        Raises:
            BusClosed: The bus has been closed.
            RxBusError: `on_next` is an `async def` function, and no event loop is running.
        """
        name, lane = self._registry.whose(sys._getframe(), on_next)
        if isinstance(on_next, abc.ObserverBase) or callable(getattr(on_next, "on_next", None)):
            observer = cast(abc.ObserverBase[Event[T]], on_next)
            on_next, on_error, on_completed = observer.on_next, observer.on_error, observer.on_completed
        handler = cast(Callable[[Any], object], on_next or noop)
        loop = local.here.loop
        if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):
            loop = operators.running_loop("an async handler")
            handler = _on_loop(loop, cast(Callable[[Any], Coroutine[Any, Any, object]], handler))
        return self._attach(
            lane, handler, on_error or default_error, on_completed or noop, self._name() or name, loop
        )

    def _name(self) -> str | None:
        return None

    def _attach(
        self,
        lane: Lane,
        on_next: Callable[[Any], object],
        on_error: Callable[[Exception], object],
        on_completed: Callable[[], object],
        name: str,
        loop: asyncio.AbstractEventLoop | None,
    ) -> abc.DisposableBase:
        attachment = _Attachment(self._registry, self, lane, on_next, on_error, on_completed, name, loop)
        return self._registry.attach(attachment)

    def only_payload(self) -> Observable[T]:
        """The payloads of the events; see `rxbus.only_payload`."""
        return operators.only_payload(self)

    async def __aiter__(self) -> AsyncIterator[Event[T]]:
        """Iterates over the events from now on; up to 64 are held for a slow loop body, then publishers wait.

        The events of an iteration that has been left go nowhere. It ends when the stream ends; an error is raised.
        """
        loop = asyncio.get_running_loop()
        held: asyncio.Queue[Event[T]] = asyncio.Queue(STREAM_CAPACITY)
        ended: asyncio.Future[Exception | None] = loop.create_future()

        def end(error: Exception | None = None) -> None:
            loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(error))

        attached = self.subscribe(held.put, end, end)
        getting: asyncio.Task[Event[T]] | None = None
        try:
            while not (ended.done() and held.empty()):
                getting = getting or asyncio.ensure_future(held.get())
                await asyncio.wait((getting, ended), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    event, getting = getting.result(), None
                    yield event
            error = ended.result()
            if error is not None:
                raise error
        finally:
            attached.dispose()
            if getting is not None:
                getting.cancel()
            ended.cancel()


def _on_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[[Any], Coroutine[Any, Any, object]]
) -> Callable[[Any], None]:
    """Makes a handler of an async one: the delivery lasts, and holds the lane's turn, until the coroutine is done."""

    def on_next(event: Any) -> None:
        delivery = current_delivery()
        assert delivery is not None
        context = copy_context()
        context.run(coroutine_delivery.set, delivery)

        def done(task: asyncio.Task[object]) -> None:
            if task.cancelled():
                delivery.settle(RxBusError("the handler's coroutine was cancelled"), holds=True)
            else:
                delivery.settle(task.exception(), holds=True)

        def begin() -> None:
            loop.create_task(_call(function, event), context=context).add_done_callback(done)

        delivery.defer(holds=True)
        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError as error:
            delivery.settle(holds=True)
            raise RxBusError("the event loop of an async handler has been closed") from error

    return on_next


async def _call(function: Callable[[Any], Coroutine[Any, Any, object]], event: Any) -> object:
    return await function(event)


class Subscription(_Source[T]):
    """What `bus.subscribe` returns: an Observable of a topic's events, or of all that match a pattern.

    It is lazy, as Rx is: an observer is attached when somebody subscribes to it, directly or behind operators. Several
    may, and each acknowledges for itself. `async for event in subscription` works too.
    """

    def __init__(self, registry: Registry, topic: str, name: str | None) -> None:
        super().__init__(registry, topic)
        self._given_name = name
        self._unsubscribed = False
        self._attachments: dict[_Attachment, None] = {}  # under the registry's lock

    @property
    def topic(self) -> str:
        """The topic or pattern that it is on."""
        return self._topic

    def __repr__(self) -> str:
        return f"<Subscription on {self._topic!r}, observers: {len(self._attachments)}>"

    def _name(self) -> str | None:
        return self._given_name

    def unsubscribe(self) -> None:
        """Completes every observer attached through it; see `EventBus.unsubscribe`."""
        with self._registry.lock:
            self._unsubscribed = True
            attachments = list(self._attachments)
        for attachment in attachments:
            attachment.finish()


class TopicSubject(_Source[T], Subject[Event[T]]):
    """A topic as a Subject: the events of one name, in one order, to all its observers at once.

    It is a true `reactivex.subject.Subject`. `on_next(event)` delivers what it is given, as it is, in the way that
    `publish` does: it waits for every observer and raises `PublishError`. `on_completed`, `on_error` and `dispose` end
    its observers, but not those attached through patterns, which later publishes still reach.
    """

    def __init__(self, registry: Registry, log: Log) -> None:
        self.is_disposed = False
        self._log = log
        _Source.__init__(self, registry, log.name)
        Observer.__init__(self)

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._topic

    @property
    def observers(self) -> list[abc.ObserverBase[Event[T]]]:  # type: ignore[override] # pyright: ignore
        """Who is attached, in the order of attachment."""
        feeds = list(self._log.feeds)
        return [Observer(f.attachment.on_next, f.attachment.on_error, f.attachment.on_completed) for f in feeds]

    @property
    def exception(self) -> Exception | None:  # type: ignore[override] # pyright: ignore
        """What ended the topic's stream, if it was an error."""
        return None if self.is_disposed else self._log.error

    def __repr__(self) -> str:
        state = "disposed" if self.is_disposed else "ended" if self._log.ended else "open"
        return f"<TopicSubject {self._topic!r}, {state}, observers: {len(self._log.feeds)}>"

    def _attach(self, *arguments: Any) -> abc.DisposableBase:
        self.check_disposed()
        return super()._attach(*arguments)

    def _subscribe_core(
        self, observer: abc.ObserverBase[Event[T]], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        return self.subscribe(observer, scheduler=scheduler)

    def _on_next_core(self, value: Event[T]) -> None:
        self._log.publish_to_all(value, raw=True)

    def _on_error_core(self, error: Exception) -> None:
        self._log.end(error, self._registry.is_on_pattern)

    def _on_completed_core(self) -> None:
        self._log.end(None, self._registry.is_on_pattern)

    def dispose(self) -> None:
        """Detaches all observers and releases the topic; using it further raises `DisposedException`."""
        self.is_disposed = True
        Observer.dispose(self)
        for attachment in self._log.dispose(self._registry.is_on_pattern):
            attachment.leave()


class _Attachment(Attachment):
    """An attachment that the registry knows of."""

    __slots__ = ("registry", "source")

    def __init__(
        self,
        registry: Registry,
        source: _Source[Any],
        lane: Lane,
        on_next: Callable[[Any], object],
        on_error: Callable[[Exception], object],
        on_completed: Callable[[], object],
        name: str,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(lane, on_next, on_error, on_completed, name, loop)
        self.registry = registry
        self.source = source

    def leave(self) -> None:
        self.registry.forget(self)
        super().leave()


class Registry:
    """The topics of a bus, and who is attached to which.

    There is a log for every name that somebody publishes to or listens on, with the observers that match it, so that a
    publish looks up just one thing. Logs of names that are no topics in the registry (published to, never asked for)
    are swept out again when they have long been quiet.
    """

    SWEEP = 4096

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # Guards all below. Log.lock may be taken under it, never the other way round; no user code runs under it.
        self.lock = threading.Lock()
        self.logs: dict[str, Log] = {}  # read without the lock by every publish
        self.subjects: dict[str, TopicSubject[Any]] = {}
        self.attachments: dict[_Attachment, None] = {}
        self._patterns: dict[_Attachment, Callable[[str], bool]] = {}
        self._lanes: WeakKeyDictionary[AutoDetachObserver[Any], Lane] = WeakKeyDictionary()
        self._sweep_at = self.SWEEP
        self._seen: dict[str, int] = {}  # publishes per unasked-for topic, at the last sweep
        self.published = 0  # by logs that have been swept out
        self.fanned = 0

    def log(self, name: str) -> Log:
        """The log of a topic.

        Raises:
            InvalidTopic: `name` is not a topic's name.
        """
        found = self.logs.get(name)
        if found is not None:
            return found
        check_name(name)
        with self.lock:
            return self._log(name)

    def _log(self, name: str) -> Log:
        log = self.logs.get(name)
        if log is None:
            if len(self.logs) - len(self.subjects) >= self._sweep_at:
                self._sweep()
            log = Log(name, self._hub)
            for attachment, matches in self._patterns.items():
                if matches(name):
                    log.add_pattern(attachment)
            self.logs[name] = log
        return log

    def _sweep(self) -> None:
        """Retires the logs that nobody has published to since the last sweep."""
        seen: dict[str, int] = {}
        for name, log in list(self.logs.items()):
            count = log.published + log.singles
            if name in self.subjects:
                continue
            if self._seen.get(name) == count and log.retire():
                self.published += count
                self.fanned += log.fanned() + log.singles
                del self.logs[name]
            else:
                seen[name] = count
        self._seen = seen
        self._sweep_at = max(self.SWEEP, 2 * len(seen))

    def subject(self, name: str) -> TopicSubject[Any]:
        """The Subject of a topic, made on first use.

        Raises:
            InvalidTopic: `name` is not a topic's name.
        """
        found = self.subjects.get(name)
        if found is not None:
            return found
        check_name(name)
        with self.lock:
            found = self.subjects.get(name)
            if found is None:
                found = self.subjects[name] = TopicSubject(self, self._log(name))
            return found

    def subscription(self, topic: str, name: str | None) -> Subscription[Any]:
        """A subscription on a topic or pattern.

        Raises:
            InvalidTopic: `topic` is neither.
        """
        if topic not in self.subjects:
            check_pattern(topic)
            if not is_pattern(topic):
                self.subject(topic)
        return Subscription(self, topic, name)

    def attach(self, attachment: _Attachment) -> abc.DisposableBase:
        """Feeds an observer from now on; one that comes too late is told how the stream ended."""
        source, topic = attachment.source, attachment.source._topic
        local.here.engine = self._hub.engine
        with self.lock:
            if self._hub.closing:
                raise BusClosed("the bus is closed")
            alive = not (isinstance(source, Subscription) and source._unsubscribed)
            error = None
            if alive and is_pattern(topic):
                self._patterns[attachment] = matches = matcher(topic)
                for log in list(self.logs.values()):
                    if matches(log.name):
                        log.add_pattern(attachment)
            elif alive:
                log = self._log(topic)
                alive = log.add(attachment)
                error = log.error
            if alive:
                self.attachments[attachment] = None
                if isinstance(source, Subscription):
                    source._attachments[attachment] = None
        if not alive:
            attachment.left = True
            if error is None:
                attachment.on_completed()
            else:
                attachment.on_error(error)
        return Disposable(attachment.leave)

    def forget(self, attachment: _Attachment) -> None:
        """It leaves: matches no new topic and is not counted any more."""
        with self.lock:
            self._patterns.pop(attachment, None)
            self.attachments.pop(attachment, None)
            if isinstance(attachment.source, Subscription):
                attachment.source._attachments.pop(attachment, None)

    def is_on_pattern(self, attachment: Attachment) -> bool:
        """Whether it is attached through a pattern, and so outlives a topic."""
        return attachment in self._patterns

    def whose(self, frame: FrameType, handler: object) -> tuple[str, Lane]:
        """Finds the observer for whom a subscription is being subscribed to: how to call it, and its lane.

        The outermost `Observable.subscribe` on the stack is what the user called. All that it attaches, at once or from
        the trampoline, is one observer and shares a lane; it is known by its AutoDetachObserver, held weakly. Frames
        beyond a delivery belong to somebody else. Attaching is rare, so that a walk up the stack is cheap enough.
        """
        outermost: FrameType | None = None
        above: FrameType | None = frame.f_back
        while above is not None and above.f_code not in DELIVERING:
            if above.f_code is Observable.subscribe.__code__:
                outermost = above
            above = above.f_back
        if outermost is None:
            return _describe(handler, frame), new_lane(self._hub.engine)
        variables = outermost.f_locals
        observer = variables["auto_detach_observer"]
        with self.lock:
            lane = self._lanes.get(observer)
            if lane is None:
                lane = self._lanes[observer] = new_lane(self._hub.engine)
        return _describe(variables["on_next"], outermost), lane


def _describe(handler: object, frame: FrameType) -> str:
    """A handler's qualified name, and where it was attached: the first line on the way up that is neither Rx's nor ours."""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    return f"{name.replace('.<locals>', '')} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"


_OURS = (os.path.dirname(__file__) + os.sep, os.path.dirname(reactivex.__file__) + os.sep)
