"""Every error that rxbus raises, in one tree.

RxBusError
├── InvalidArgument        (also ValueError)      a value that cannot be meant
│   └── InvalidTopic                              a topic name or pattern that is none
├── BusClosed                                     the bus has been closed
├── MissingExtra           (also ImportError)     an optional part is not installed
├── PublishError           (also ExceptionGroup)  observers failed
├── AcknowledgementTimeout (also TimeoutError)    observers did not acknowledge in time
├── FeedbackLoop                                  an event that leads to itself for ever
├── EventLoopBlocked                              a publish that would wait for the loop it blocks
├── BufferOverflow                                a full buffer that may not, or must not, wait
└── TimeStandsStill                               actions that keep virtual time from passing

Messages are made from the attributes, so that what is printed is also there to be read by a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rxbus._acknowledgement import Receipt

__all__ = [
    "AcknowledgementTimeout",
    "BufferOverflow",
    "BusClosed",
    "EventLoopBlocked",
    "FeedbackLoop",
    "InvalidArgument",
    "InvalidTopic",
    "MissingExtra",
    "PublishError",
    "RxBusError",
    "TimeStandsStill",
]


class RxBusError(Exception):
    """The root of all errors that rxbus raises."""


class InvalidArgument(RxBusError, ValueError):
    """An argument that cannot be meant: a negative timeout, an unknown overflow policy, a topic not one's own."""


class InvalidTopic(InvalidArgument):
    """A topic name or pattern that is none.

    Attributes:
        topic: What was given.
        reason: What is wrong with it.
    """

    def __init__(self, topic: object, reason: str) -> None:
        super().__init__(topic, reason)
        self.topic = topic
        self.reason = reason

    def __str__(self) -> str:
        shown = repr(self.topic)
        return f"{shown if len(shown) <= 80 else shown[:77] + '...'} is not a topic: {self.reason}"


class BusClosed(RxBusError):
    """The bus has been closed: nothing more can be published or attached."""


class MissingExtra(RxBusError, ImportError):
    """An optional part of rxbus needs packages that are not installed.

    Attributes:
        extra: The extra that brings them.
    """

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(extra, what)
        self.extra = extra
        self.what = what

    def __str__(self) -> str:
        # No "pip install 'rxbus[...]'": on PyPI, that name is another project's.
        how = f"install rxbus with it, in a clone by pip install '.[{self.extra}]'"
        return f"{self.what} needs the extra {self.extra!r}: {how}"


class PublishError(RxBusError, ExceptionGroup[Exception]):
    """Observers failed; all others have acknowledged.

    It is an exception group: `except*` and `.exceptions` give every failure, each with a note that names its observer.

    Attributes:
        receipt: What `publish` would have returned.
    """

    receipt: Receipt

    def __new__(cls, message: str, exceptions: Sequence[Exception], receipt: Receipt) -> PublishError:
        self = super().__new__(cls, message, exceptions)
        self.receipt = receipt
        return self

    def __init__(self, message: str, exceptions: Sequence[Exception], receipt: Receipt) -> None:
        super().__init__(message, exceptions)

    def __reduce__(self) -> tuple[Any, ...]:
        return PublishError, (self.message, self.exceptions, self.receipt), self.__dict__

    def derive(self, excs: Sequence[Exception], /) -> PublishError:  # type: ignore[override]
        """Makes the part of this group that `split` and `except*` ask for; it keeps the receipt."""
        return PublishError(self.message, excs, self.receipt)


class AcknowledgementTimeout(RxBusError, TimeoutError):
    """Some observers have not acknowledged in time. Their deliveries go on.

    Failures that were known by then are attached as notes.

    Attributes:
        topic: The topic that was published to.
        timeout: The time that was given, in seconds; infinity where none was, in virtual time.
        pending: The names of the observers that have not acknowledged.
    """

    def __init__(self, topic: str, timeout: float, pending: tuple[str, ...]) -> None:
        self.topic = topic
        self.timeout = timeout
        self.pending = pending
        super().__init__(str(self))  # one argument: more would be taken for a system error's number and file name

    def __str__(self) -> str:
        names = ", ".join(self.pending)
        if self.timeout < inf:
            return f"publish to {self.topic!r}: not acknowledged within {self.timeout:g} s by {names}"
        why = "in virtual time, which waits for no other thread, nothing is left to happen"
        return f"publish to {self.topic!r}: never acknowledged by {names}: {why}"

    def __reduce__(self) -> tuple[Any, ...]:
        return AcknowledgementTimeout, (self.topic, self.timeout, self.pending), self.__dict__


class FeedbackLoop(RxBusError):
    """A chain of causes that has grown longer than the bus allows: an event that leads to itself for ever.

    Attributes:
        topics: The topics of the loop, in the order in which they cause each other.
        max_chain: The length that was exceeded.
        observer: The observer whose publish was one too many.
    """

    def __init__(self, topics: tuple[str, ...], max_chain: int, observer: str) -> None:
        super().__init__(topics, max_chain, observer)
        self.topics = topics
        self.max_chain = max_chain
        self.observer = observer

    def __str__(self) -> str:
        loop = " -> ".join((*self.topics, self.topics[0]))
        chain = f"a chain of more than {self.max_chain} events, each published by a handler of the one before"
        return f"{chain}: {loop}; by {self.observer}"


class EventLoopBlocked(RxBusError):
    """A blocking publish on the very event loop that must run one of its handlers: it could never return.

    Attributes:
        topic: The topic that was to be published to.
        observer: The observer that needs the event loop.
    """

    def __init__(self, topic: str, observer: str) -> None:
        super().__init__(topic, observer)
        self.topic = topic
        self.observer = observer

    def __str__(self) -> str:
        return (
            f"publish to {self.topic!r} would block the event loop that has to run {self.observer}: "
            "use 'await bus.publish_async(...)', or publish from another thread"
        )


class BufferOverflow(RxBusError):
    """A buffer is full and may not wait (`overflow="error"`), or waiting would be for ever.

    Attributes:
        capacity: How many items the buffer holds.
        reason: Why it did not wait.
    """

    def __init__(self, capacity: int, reason: str) -> None:
        super().__init__(capacity, reason)
        self.capacity = capacity
        self.reason = reason

    def __str__(self) -> str:
        return f"a buffer of {self.capacity} is full: {self.reason}"


class TimeStandsStill(RxBusError):
    """Actions keep virtual time from passing: one that reschedules itself without delay, most likely.

    Attributes:
        seconds: The virtual time at which they go on.
        actions: How many have been done there.
    """

    def __init__(self, seconds: float, actions: int) -> None:
        super().__init__(seconds, actions)
        self.seconds = seconds
        self.actions = actions

    def __str__(self) -> str:
        return (
            f"virtual time stands still at {self.seconds:g} s: {self.actions} actions have been done there, and each "
            "time there was another. Does one reschedule itself without delay?"
        )
