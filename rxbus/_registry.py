"""The registry: which topics a bus has, and who is attached to which."""

from __future__ import annotations

import os.path
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import reactivex
from reactivex import Observable, abc
from reactivex.disposable import Disposable
from reactivex.observer import AutoDetachObserver

from rxbus._delivery import DELIVERING
from rxbus._event import check_name, check_pattern, is_pattern, matcher
from rxbus._here import local
from rxbus._lane import Attachment, Lane, new_lane
from rxbus._log import Hub, Log
from rxbus._topic import Source, Subscription, TopicSubject
from rxbus.errors import BusClosed


class _Attachment(Attachment):
    """An attachment that the registry knows of."""

    __slots__ = ("registry", "source")

    def __init__(self, registry: Registry, source: Source[Any], *arguments: Any) -> None:
        super().__init__(*arguments)
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
        hub.resolve = self.log
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
        local.here.engine = self._hub.engine
        with self.lock:
            if self._hub.closing:
                raise BusClosed("the bus is closed")
            home = Log(topic, self._hub) if is_pattern(topic) else self._log(topic)
            attachment = _Attachment(self, source, lane, on_next, on_error, on_completed, name, loop, home)
            alive = not (isinstance(source, Subscription) and source._unsubscribed)
            error = None
            if alive and is_pattern(topic):
                self._patterns[attachment] = matches = matcher(topic)
                for log in list(self.logs.values()):
                    if matches(log.name):
                        log.add_pattern(attachment)
            elif alive:
                alive = home.add(attachment)
                error = home.error
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


_OURS = tuple(os.path.dirname(one.__code__.co_filename) + os.sep for one in (_describe, reactivex.merge))
