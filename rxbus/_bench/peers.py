"""The peers that rxbus is compared with, each behind one small adapter.

An adapter hands out the peer's own callables, bound and nothing more: no frame of ours is in what is measured. The
libraries are imported when their adapter is made; none of them has to be installed.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Coroutine
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from reactivex.subject import Subject

import rxbus

if TYPE_CHECKING:
    import abxbus  # type: ignore[import-untyped]
    import blinker
    import psygnal
    import pyee

T = TypeVar("T")
Handler = Callable[[Any], Any]
Publish = Callable[[Any], object]

LIMIT = 10.0  # seconds after which what should long have ended counts as hung


class Peer(ABC):
    """An event library, reduced to what all of them can do. Handlers take one argument; see `payload`.

    Attributes:
        package: What is imported; None: nothing is.
        name: What tables call it.
        option: What it was asked for beyond its defaults.
    """

    package: ClassVar[str | None]
    name: ClassVar[str]
    option: ClassVar[str] = ""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    @classmethod
    def version(cls) -> str | None:
        """The version that is installed, if one is; of what is no library, Python's."""
        if cls.package is None:
            return platform.python_version()
        try:
            import_module(cls.package)
        except ImportError:
            return None
        return version(cls.package)

    @abstractmethod
    def source(self, topic: str) -> Any:
        """The library's own object for what one attaches to."""

    @abstractmethod
    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        """Attaches a handler, a function of its own; gives what detaches it."""

    @abstractmethod
    def publisher(self, topic: str) -> Publish:
        """The library's call that publishes one payload."""

    def publish(self, topic: str, payload: object) -> object:
        return self.publisher(topic)(payload)

    async def publish_async(self, topic: str, payload: object) -> object:
        """Publishes from a coroutine; by the plain call, where the library has nothing of the kind."""
        return self.publish(topic, payload)

    async def prepare(self) -> None:  # noqa: B027
        """Gets ready for async handlers, on the event loop that runs them."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the event loop that belongs to this peer."""
        return self._runner.run(coroutine)

    def payload(self, message: Any) -> Any:
        """What was published, out of what a handler is given."""
        return message

    def close(self) -> None:
        self._runner.close()


class Loop(Peer):
    """No library: a loop over callbacks, the floor of what a delivery costs."""

    package = None
    name = "plain loop"

    def __init__(self) -> None:
        super().__init__()
        self._topics: defaultdict[str, list[Handler]] = defaultdict(list)

    def source(self, topic: str) -> list[Handler]:
        return self._topics[topic]

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        self.source(topic).append(handler)
        return partial(self.source(topic).remove, handler)

    def publisher(self, topic: str) -> Publish:
        handlers = self.source(topic)

        def publish(payload: object) -> None:
            for handler in handlers:
                handler(payload)

        return publish


class Rxbus(Peer):
    package = name = "rxbus"

    def __init__(self) -> None:
        super().__init__()
        self.bus = rxbus.EventBus()

    def source(self, topic: str) -> rxbus.Subscription[Any]:
        return self.bus.subscribe(topic)

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        return self.source(topic).subscribe(handler).dispose

    def publisher(self, topic: str) -> Publish:
        return partial(self.bus.publish, topic)

    async def publish_async(self, topic: str, payload: object) -> object:
        return await self.bus.publish_async(topic, payload)

    def payload(self, message: rxbus.Event[Any]) -> Any:
        return message.payload

    def close(self) -> None:
        self.bus.close()
        super().close()


class Rx(Peer):
    package = "reactivex"
    name = "RxPY Subject"

    def __init__(self) -> None:
        super().__init__()
        self._topics: defaultdict[str, Subject[Any]] = defaultdict(Subject)

    def source(self, topic: str) -> Subject[Any]:
        return self._topics[topic]

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        return self.source(topic).subscribe(handler).dispose

    def publisher(self, topic: str) -> Publish:
        return self.source(topic).on_next


class Blinker(Peer):
    """The payload is the sender: the cheapest way that blinker has to hand one over."""

    package = name = "blinker"

    def __init__(self) -> None:
        import blinker

        super().__init__()
        self._signals = blinker.Namespace()

    def source(self, topic: str) -> blinker.Signal:
        return self._signals.signal(topic)

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        self.source(topic).connect(handler, weak=False)
        return partial(self.source(topic).disconnect, handler)

    def publisher(self, topic: str) -> Publish:
        return self.source(topic).send

    async def publish_async(self, topic: str, payload: object) -> object:
        return await self.source(topic).send_async(payload)


class Pyee(Peer):
    package = name = "pyee"

    def __init__(self) -> None:
        super().__init__()
        self.emitter = self._emitter()

    def _emitter(self) -> pyee.EventEmitter:
        import pyee

        return pyee.EventEmitter()

    def source(self, topic: str) -> pyee.EventEmitter:
        return self.emitter

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        self.emitter.add_listener(topic, handler)
        return partial(self.emitter.remove_listener, topic, handler)

    def publisher(self, topic: str) -> Publish:
        return partial(self.emitter.emit, topic)


class Psygnal(Peer):
    package = name = "psygnal"

    def __init__(self) -> None:
        super().__init__()
        self._signals: defaultdict[str, psygnal.SignalInstance] = defaultdict(self._signal)

    def _signal(self) -> psygnal.SignalInstance:
        import psygnal

        return psygnal.SignalInstance((object,))

    def source(self, topic: str) -> psygnal.SignalInstance:
        return self._signals[topic]

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        self.source(topic).connect(handler)
        return partial(self.source(topic).disconnect, handler)

    def publisher(self, topic: str) -> Publish:
        return self.source(topic).emit


class Abxbus(Peer):
    """It lives on an event loop, which runs on a thread of its own here: so plain code on any thread can publish."""

    package = name = "abxbus"
    # At the default history of 100 events it refuses the 101st, though each has been awaited.
    _settings: ClassVar[dict[str, Any]] = {"max_history_size": 0}

    def __init__(self) -> None:
        import abxbus

        super().__init__()
        self._library: Any = abxbus
        logging.getLogger("abxbus").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.bus = self.run(self._bus())

    async def _bus(self) -> abxbus.EventBus:
        return self._library.EventBus(warn_on_duplicate_handler_names=False, **self._settings)

    def source(self, topic: str) -> abxbus.EventBus:
        return self.bus

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        self.bus.on(_identifier(topic), handler)
        return partial(self.bus.off, _identifier(topic), handler)

    def emit(self, topic: str, payload: object) -> abxbus.BaseEvent[Any]:
        """Queues an event, on the loop's thread, without waiting for it."""
        return self.bus.emit(self._library.BaseEvent(event_type=_identifier(topic), payload=payload))

    def publisher(self, topic: str) -> Publish:
        return partial(self.publish, topic)

    def publish(self, topic: str, payload: object) -> object:
        if threading.current_thread() is self._thread:  # in a plain handler, which cannot wait
            return self.emit(topic, payload)
        return self.run(self.publish_async(topic, payload))

    async def publish_async(self, topic: str, payload: object) -> object:
        event = await self.emit(topic, payload).now()
        return await event.event_results_list()  # raises what the handlers have raised

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT)

    def payload(self, message: Any) -> Any:
        return message.payload

    async def _end(self) -> None:
        await self.bus.destroy()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def close(self) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()
        super().close()


def _identifier(topic: str) -> str:
    return topic.replace(".", "_")


INLINE: tuple[type[Peer], ...] = (Loop, Rxbus, Rx, Blinker, Pyee, Psygnal)  # a plain call that waits for the handlers
ALL: tuple[type[Peer], ...] = (*INLINE, Abxbus)


class Tally:
    """Handlers that count one up, and how many they have counted together."""

    def __init__(self) -> None:
        self._counts: list[Callable[[], int]] = []

    @property
    def total(self) -> int:
        return sum(count() for count in self._counts)

    def handler(self) -> Handler:
        count = 0

        def handle(_: object) -> None:
            nonlocal count
            count += 1  # no call inside: CPython does not switch threads here

        self._counts.append(lambda: count)
        return handle

    def attach(self, peer: Peer, topic: str, observers: int) -> None:
        for _ in range(observers):
            peer.attach(topic, self.handler())
