"""rxbus: an event bus for Python on ReactiveX, whose `publish` waits for every observer.

An event flows one way, and each module imports only from those below it:

    _bus              EventBus
    _taps             what can be hung on a bus besides observers, and what it tells of itself
    _statistics       what a bus has done, in numbers
    _registry         which topics there are, and who is attached to which
    _topic            topics as Subjects, subscriptions as Observables
    operators         operators that know about acknowledgement (_buffered, _coroutines)
    _scheduler        BlockingScheduler: the delivery engine as a reactivex scheduler
    _virtual          virtual time
    _watch            what the monitor looks at: hand-off, stall warnings
    _delivery         publishing: the round, and what it waits for (_delivery_async: on a loop)
    _log              a topic's events in their one order
    _observer         observers as they are attached
    _lane             an observer's turn, and the mail left for it
    _workers          threads
    _acknowledgement  what keeps a delivery open; defer
    _trace            the tap: what tracers are told
    _fan_out          what an event still owes, and what its publisher waits for
    _here             where a thread stands
    _event            events, topics, patterns
    _short            text for people out of any object
    _bell             how one thread wakes another
    errors            every error, in one tree
"""

from importlib.metadata import version

from rxbus import errors, operators
from rxbus._acknowledgement import Acknowledgement, Receipt, defer
from rxbus._bus import EventBus
from rxbus._event import Event, Topic, matcher
from rxbus._scheduler import BlockingScheduler
from rxbus._statistics import Statistics, TopicStatistics
from rxbus._topic import Subscription, TopicSubject
from rxbus._trace import StageTracer, Tracer
from rxbus._virtual import VirtualClock
from rxbus.errors import (
    AcknowledgementTimeout,
    BufferOverflow,
    BusClosed,
    EventLoopBlocked,
    FeedbackLoop,
    InvalidArgument,
    InvalidTopic,
    PublishError,
    RxBusError,
    TimeStandsStill,
)
from rxbus.operators import only_payload

__all__ = [
    "Acknowledgement",
    "AcknowledgementTimeout",
    "BlockingScheduler",
    "BufferOverflow",
    "BusClosed",
    "Event",
    "EventBus",
    "EventLoopBlocked",
    "FeedbackLoop",
    "InvalidArgument",
    "InvalidTopic",
    "PublishError",
    "Receipt",
    "RxBusError",
    "StageTracer",
    "Statistics",
    "Subscription",
    "TimeStandsStill",
    "Topic",
    "TopicStatistics",
    "TopicSubject",
    "Tracer",
    "VirtualClock",
    "defer",
    "errors",
    "matcher",
    "only_payload",
    "operators",
]

__version__ = version("rxbus")
