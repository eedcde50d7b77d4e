"""The registry: which topics a bus has, and who is attached to which."""

from __future__ import annotations

import os.path
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CellType, FrameType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import reactivex
from reactivex import Observable, abc
from reactivex.abc import SubjectBase
from reactivex.disposable import Disposable
from reactivex.observer import AutoDetachObserver, ScheduledObserver

from rxbus import _coroutines, operators
from rxbus._buffered import Buffer, buffers
from rxbus._cells import place_of
from rxbus._coroutines import Mapping, check_handler, is_async
from rxbus._delivery import DELIVERING
from rxbus._event import check_name, check_pattern, is_pattern, matcher
from rxbus._here import local
from rxbus._lane import Lane, new_lane
from rxbus._log import Hub, Log, new_log
from rxbus._observer import Attachment
from rxbus._put_off import run_later
from rxbus._topic import Source, Subscription, TopicSubject
from rxbus.errors import BusClosed, RxBusError


class _Attachment(Attachment):
    """An attachment that the registry knows of."""

    __slots__ = ("registry", "source")

    def __init__(self, registry: Registry, source: Source[Any], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.registry = registry
        self.source = source

    def _leave(self) -> None:
        self.registry.forget(self)
        super()._leave()


class Registry:
    """The topics of a bus, and who is attached to which.

    There is a log for every name that somebody publishes to or listens on, with the observers that match it, so that a
    publish looks up just one thing. Logs of names that are no topics in the registry (published to, never asked for)
    are swept out again when they have long been quiet.
    """

    SWEEP = 4096

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        hub.resolve = self.log
        # Guards all below. A log's order lock may be taken under it, never the other way round; no user code runs under
        # it, but for a destructor that the garbage collector may run at any moment: hence an RLock, and copies.
        self.lock = threading.RLock()
        hub.guards += [self.lock, buffers]
        self.logs: dict[str, Log] = {}  # read without the lock by every publish
        self.subjects: dict[str, TopicSubject[Any]] = {}
        self.attachments: dict[_Attachment, None] = {}
        self._patterns: dict[_Attachment, Callable[[str], bool]] = {}
        self._lanes: WeakKeyDictionary[AutoDetachObserver[Any], tuple[str, Lane]] = WeakKeyDictionary()
        self._sweep_at = self.SWEEP
        self._seen: dict[str, int] = {}  # publishes per unasked-for topic, at the last sweep
        self._to_visit: deque[Lane] = deque()  # lanes whose turn a sweep has held: visited once the lock is let go of
        self.published = 0  # by logs that have been swept out
        self.fanned = 0

    def log(self, name: str) -> Log:
        """The log of a topic.

        Raises:
            InvalidTopic: `name` is not a topic's name.
        """
        found = self.logs.get(name)
        if found is not None and not found.retired:  # a sweep may be about to take it off: the lock waits for that
            return found
        name = check_name(name)
        try:
            with self.lock:
                return self._log(name)
        finally:
            self._visit()

    def _visit(self) -> None:
        """Visits the lanes that a sweep has kept, once the lock has been let go of: that may call handlers."""
        while self._to_visit:
            with suppress(IndexError):
                self._to_visit.popleft().visit()
        here = local.here
        if here.later:
            run_later(here)

    def _log(self, name: str) -> Log:
        log = self.logs.get(name)
        if log is not None and log.retired:  # the sweep was interrupted right then
            self._take_off(log)
            log = None
        if log is None:
            if len(self.logs) - len(self.subjects) >= self._sweep_at:
                self._sweep()
            log = new_log(name, self._hub)
            for attachment in list(self._patterns):  # no `items`: see Watch.look
                matches = self._patterns.get(attachment)
                if matches is not None and matches(name):
                    log.add_pattern(attachment)
            self.logs[name] = log
        return log

    def _sweep(self) -> None:
        """Retires the logs that nobody has published to since the last sweep."""
        seen: dict[str, int] = {}
        for name in list(self.logs):  # no `items`: see Watch.look
            log = self.logs.get(name)
            if log is None or name in self.subjects:
                continue
            count = log.published + log.singles
            if self._seen.get(name) != count:
                seen[name] = count
                continue
            only = log.only
            if only is not None:
                self._to_visit.append(only.lane)
            if log.retire():
                self._take_off(log)
            else:
                seen[name] = count
        self._seen = seen
        self._sweep_at = max(self.SWEEP, 2 * len(seen))

    def _take_off(self, log: Log) -> None:
        """Takes off one that has been retired: there can be no more publishes to count."""
        self.published += log.published + log.singles
        self.fanned += log.fanned() + log.singles
        del self.logs[log.name]

    def subject(self, name: str) -> TopicSubject[Any]:
        """The Subject of a topic, made on first use.

        Raises:
            InvalidTopic: `name` is not a topic's name.
        """
        found = self.subjects.get(name)
        if found is not None:
            return found
        name = check_name(name)
        try:
            with self.lock:
                found = self.subjects.get(name)
                if found is None:
                    found = self.subjects[name] = TopicSubject(self, self._log(name))
                return found
        finally:
            self._visit()

    def subscription(self, topic: str, name: str | None) -> Subscription[Any]:
        """A subscription on a topic or pattern.

        Raises:
            InvalidTopic: `topic` is neither.
        """
        if topic not in self.subjects:
            topic = check_pattern(topic)
            if not is_pattern(topic):
                self.subject(topic)
        return Subscription(self, topic, name)

    def attach(
        self,
        source: Source[Any],
        lane: Lane,
        on_next: Callable[[Any], object],
        on_error: Callable[[Exception], object],
        on_completed: Callable[[], object],
        name: str,
        loop: AbstractEventLoop | None,
    ) -> abc.DisposableBase:
        """Feeds an observer from now on; one that comes too late is told how the stream ended.

        Raises:
            BusClosed: The bus has been closed.
        """
        topic = source._topic
        here = local.here
        here.hub, here.attached = self._hub, name
        attachment: _Attachment | None = None
        try:
            with self.lock:
                if self._hub.closing:
                    raise BusClosed(self._hub.why)
                home = new_log(topic, self._hub) if is_pattern(topic) else self._log(topic)
                attachment = _Attachment(self, source, lane, on_next, on_error, on_completed, name, loop, home)
                alive = self._feed(attachment)
        except BaseException:  # interrupted: nobody is going to have what detaches it
            if attachment is not None:
                attachment.leave()
            raise
        finally:
            self._visit()
        if not alive:
            attachment.left = True
            unsubscribed = isinstance(source, Subscription) and source._unsubscribed
            if home.error is None or unsubscribed:
                attachment.on_completed()
            else:
                attachment.on_error(home.error)
        return Disposable(attachment.leave)

    def _feed(self, attachment: _Attachment) -> bool:
        """Feeds an observer from its topic, or from all that match; False where it comes too late."""
        source = attachment.source
        if isinstance(source, Subscription) and source._unsubscribed:
            return False
        if is_pattern(source._topic):
            self._patterns[attachment] = matches = matcher(source._topic)
            for log in list(self.logs.values()):
                if matches(log.name):
                    log.add_pattern(attachment)
        elif not attachment.home.add(attachment):
            return False
        self.attachments[attachment] = None
        if isinstance(source, Subscription):
            source._attachments[attachment] = None
        return True

    def inherit(self) -> None:
        """In a forked child: threads that held something exist in the parent only."""
        self.lock = threading.RLock()
        for log in self.logs.values():
            log.only = None
            log.release()

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

        What one outermost `subscribe` attaches, at once or in steps, is one observer and shares a lane. It is known by
        the AutoDetachObserver at the end of its chain, held weakly: found by following the chain, and where that is of
        the user's own making, on the stack. What is attached inside a delivery is an observer of its own.
        """
        end, caller = _end_of_chain(handler), frame
        if end is None:
            end, caller = _outermost(frame)
        if end is None:
            return _describe(handler, frame), new_lane(self._hub.engine)
        handler = _handler_of(end)
        name = _describe(handler, caller)
        check_handler(handler)
        if is_async(handler):
            raise RxBusError(f"{name} is async and stands behind an operator, which would not await it: use map_async")
        if local.here.feed is not None and not local.here.ending:
            return name, new_lane(self._hub.engine)
        with self.lock:
            known = self._lanes.get(end)
            if known is None:
                known = self._lanes[end] = name, new_lane(self._hub.engine)
            return known


def _end_of_chain(handler: object) -> AutoDetachObserver[Any] | None:
    """Follows a chain of reactivex's and our operators down to its end; None where it is not one, or not clear.

    An operator's `on_next` is a function that holds what follows it in its closure: an observer, or its method.
    """
    ends: set[AutoDetachObserver[Any]] = set()
    known: set[int] = set()
    ahead = [handler]
    while ahead:
        one = ahead.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        following = _following(one)
        ahead += following
        if isinstance(one, AutoDetachObserver) and not following:
            ends.add(one)
        elif not following:
            return None
    return ends.pop() if len(ends) == 1 else None


def _handler_of(end: AutoDetachObserver[Any]) -> object:
    """What is called in the end: a lane ends at a buffer, and at `map_async`, but names do not."""
    ahead: AutoDetachObserver[Any] | None = end
    while ahead is not None:
        end = ahead
        stage = getattr(end._on_next, "__self__", None)
        ahead = _end_of_chain(stage.observer) if isinstance(stage, Buffer | Mapping) else None
    return end._on_next


def _following(one: object) -> list[object]:
    """What an operator's observer, or a function of its, calls next: observers, methods, functions of operators."""
    if isinstance(one, MethodType):
        return [one.__self__]
    if isinstance(one, AutoDetachObserver):
        return [one._on_next] if _is_operators(one._on_next) else []
    if isinstance(one, ScheduledObserver):
        return [one.observer]
    if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(_OPERATORS):
        return [each for each in map(_contents, one.__closure__ or ()) if _is_operators(each)]
    return []


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty yet
        return None


def _is_operators(one: object) -> bool:
    if isinstance(one, MethodType):
        return isinstance(one.__self__, AutoDetachObserver | ScheduledObserver | SubjectBase)
    if isinstance(one, FunctionType):
        return one.__code__.co_filename.startswith(_OPERATORS)
    return isinstance(one, AutoDetachObserver | ScheduledObserver)


def _outermost(frame: FrameType) -> tuple[AutoDetachObserver[Any] | None, FrameType]:
    """The observer of the outermost `Observable.subscribe` on the stack, and its frame.

    Not beyond a delivery, nor beyond an observer that is being called: what stands there is somebody else's.
    """
    outermost: tuple[AutoDetachObserver[Any] | None, FrameType] = None, frame
    called: set[int] = set()
    above: FrameType | None = frame.f_back
    while above is not None and above.f_code not in DELIVERING:
        if above.f_code is AutoDetachObserver.on_next.__code__:
            called.add(id(above.f_locals["self"]))
        if above.f_code is Observable.subscribe.__code__:
            observer = above.f_locals["auto_detach_observer"]
            if id(observer) in called:
                break
            outermost = observer, above
        above = above.f_back
    return outermost


def _describe(handler: object, frame: FrameType) -> str:
    """A handler's qualified name, and where it was attached: the first line upwards that is neither Rx's nor ours."""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    while isinstance(handler, partial):
        handler = handler.func
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    return f"{name.replace('.<locals>', '')} ({place_of(frame)})"


_OPERATORS = (
    os.path.dirname(reactivex.merge.__code__.co_filename) + os.sep,
    *(str(module.__file__) for module in (operators, _coroutines)),
)
_OURS = tuple(os.path.dirname(one.__code__.co_filename) + os.sep for one in (_describe, reactivex.merge))
