"""What rxbus and its peers do, and do not: `python -m pytest benchmarks/test_behaviour.py`.

`TABLE` is the README's. Every cell of it is measured here, and fails when its peer has changed. An option that a cell
names is one that the peer has beyond its defaults; a dash stands for what cannot be asked of it. Publishing is what the
peer waits in, if it can: for abxbus `await bus.emit(event).now()`, except in plain handlers, which cannot await.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import cache
from inspect import iscoroutinefunction
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, ClassVar, NamedTuple

import psygnal
import pyee
import pytest
from psygnal import _async as psygnal_async
from pyee.asyncio import AsyncIOEventEmitter
from pyee.executor import ExecutorEventEmitter
from reactivex import Observable
from reactivex import operators as ops
from reactivex.scheduler import EventLoopScheduler

from rxbus._bench.peers import LIMIT, Abxbus, Blinker, Handler, Peer, Psygnal, Pyee, Rx, Rxbus
from rxbus.operators import buffered

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

TABLE = """
| | rxbus | blinker | psygnal | pyee | RxPY Subject | abxbus |
|---|---|---|---|---|---|---|
| publish returns when all handlers have | yes | yes | yes | yes; executor: no | yes | yes |
| handlers run in parallel | yes | no | no | no; executor: yes | no | no |
| a failing handler takes nothing from the others | yes | no | no | no; executor: yes | no | yes |
| every failure reaches the publisher | yes | the first | the first | the first; executor: no | the first | yes |
| one order for all observers, whatever thread publishes | yes | no | yes | no; executor: no | no | yes |
| an observer is never entered by two threads at once | yes | no | yes | no; executor: no | no | yes |
| what a handler publishes comes after what it handles, for all | yes | no | no; queued: yes | no | no | yes |
| a handler's own publish does not re-enter it | yes | no | no; queued: yes | no | no | yes |
| the same where async handlers await what they publish | yes | no | - | - | - | no |
| handlers of two threads may publish to each other | yes | yes | deadlock | yes | yes | yes |
| a slow consumer slows the publisher | yes | yes | yes | yes | yes | yes |
| so does one on another thread | buffered: yes | - | thread: no | executor: no | observe_on: no | emit: refuses |
| patterns of topics | yes | no | no; group: all topics | no | no | all topics |
| composition with operators | yes | no | no | no | yes | no |
| async handlers are awaited | yes | yes | asyncio backend: run, not awaited | asyncio: run, not awaited | no | yes |
| async handlers run in parallel | yes | no | asyncio backend: no | asyncio: yes | no | no; parallel: yes |
| handlers see the publisher's contextvars | yes | yes | yes | yes; executor: no | yes | yes |
| a type checker finds a payload of the wrong type | yes | no | no | no | yes | yes |
"""

PAUSE = 0.5  # seconds: ample for what is going to happen, and what one waits for what is not


# -- options of the peers, beyond their defaults


class RxbusBuffered(Rxbus):
    option = "buffered"

    def source(self, topic: str) -> Any:
        return super().source(topic).pipe(buffered(4))


class RxObserveOn(Rx):
    option = "observe_on"

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        far = EventLoopScheduler(exit_if_empty=True)
        return self.source(topic).pipe(ops.observe_on(far)).subscribe(handler).dispose


class PsygnalQueued(Psygnal):
    option = "queued"

    def _signal(self) -> psygnal.SignalInstance:
        return psygnal.SignalInstance((object,), reemission="queued")


class PsygnalThread(Psygnal):
    """Its callbacks run on another thread, which has to look after them."""

    option = "thread"

    def __init__(self) -> None:
        super().__init__()
        self._closed = threading.Event()
        self._thread = start(self._serve)

    def _serve(self) -> None:
        while not self._closed.wait(0.001):
            psygnal.emit_queued()

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        self.source(topic).connect(handler, thread=self._thread)
        return lambda: self.source(topic).disconnect(handler)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(LIMIT)
        super().close()


class PsygnalGroup(Psygnal):
    """The topics have to be known when the class of the group is made."""

    option = "group"

    def __init__(self) -> None:
        super().__init__()
        signals = {name: psygnal.Signal(object) for name in ("prices_eur", "news")}
        self._group = type("Group", (psygnal.SignalGroup,), signals)()

    def source(self, topic: str) -> Any:
        return self._group if {*topic} & {*"*>"} else self._group[topic.replace(".", "_")]

    def payload(self, message: Any) -> Any:
        return message.args[0]


class PsygnalAsync(Psygnal):
    option = "asyncio backend"

    async def prepare(self) -> None:
        await psygnal_async.set_async_backend("asyncio").running.wait()

    def close(self) -> None:
        psygnal_async.clear_async_backend()
        super().close()


class PyeeExecutor(Pyee):
    option = "executor"

    def _emitter(self) -> pyee.EventEmitter:
        return ExecutorEventEmitter(ThreadPoolExecutor(8))

    def close(self) -> None:
        self.emitter.shutdown()  # type: ignore[attr-defined]
        super().close()


class PyeeAsync(Pyee):
    option = "asyncio"

    def _emitter(self) -> pyee.EventEmitter:
        return AsyncIOEventEmitter()


class AbxbusParallel(Abxbus):
    option = "parallel"
    _settings: ClassVar[dict[str, Any]] = {"event_handler_concurrency": "parallel"}


class AbxbusEmit(Abxbus):
    """It does not await the event; the handlers leave the event loop alone."""

    option = "emit"
    _settings: ClassVar[dict[str, Any]] = {}

    def attach(self, topic: str, handler: Handler) -> Callable[[], object]:
        async def handle(message: object) -> None:
            await asyncio.to_thread(handler, message)

        return super().attach(topic, handle)

    async def publish_async(self, topic: str, payload: object) -> object:
        return self.emit(topic, payload)


# -- the table and its rows

COLUMNS: tuple[type[Peer], ...] = (Rxbus, Blinker, Psygnal, Pyee, Rx, Abxbus)

Verdict = bool | str
Check = Callable[[Any], Verdict] | Callable[[Any], Awaitable[Verdict]]


class Row(NamedTuple):
    check: Check
    peers: tuple[type[Peer], ...]


ROWS: dict[str, Row] = {}


def row(title: str, *peers: type[Peer]) -> Callable[[Check], Check]:
    """Makes a check a row of the table, for these peers: all columns, unless told otherwise."""

    def add(check: Check) -> Check:
        ROWS[title] = Row(check, peers or COLUMNS)
        return check

    return add


def verdict(check: Check, kind: type[Peer]) -> str:
    peer = kind()
    try:
        found = peer.run(check_async(check, peer)) if iscoroutinefunction(check) else check(peer)
    finally:
        peer.close()
    word = found if isinstance(found, str) else "yes" if found else "no"
    return f"{kind.option}: {word}" if kind.option else word


async def check_async(check: Callable[[Peer], Awaitable[Verdict]], peer: Peer) -> Verdict:
    await peer.prepare()
    return await check(peer)


def measured(title: str, column: str) -> str:
    check, peers = ROWS[title]
    return "; ".join(verdict(check, kind) for kind in peers if kind.name == column) or "-"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def expected() -> Iterator[tuple[str, str, str]]:
    head, _, *lines = TABLE.strip().splitlines()
    for title, *found in map(cells, lines):
        for column, cell in zip(cells(head)[1:], found, strict=True):
            yield title, column, cell


@pytest.mark.parametrize(("title", "column", "cell"), [*expected()])
def test_behaviour(title: str, column: str, cell: str) -> None:
    assert measured(title, column) == cell


def test_the_table_has_every_row() -> None:
    assert list(dict.fromkeys(title for title, _, _ in expected())) == list(ROWS)


def start(call: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; for handlers that nobody waits for, at once for all others."""
    for _ in range(100):
        if condition():
            return True
        sleep(PAUSE / 100)
    return False


async def in_time(event: asyncio.Event) -> bool:
    """Whether it comes, where nobody may have waited for it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * PAUSE):
            await event.wait()
    return event.is_set()


# -- the checks: each says what a peer does


@row("publish returns when all handlers have", *COLUMNS, PyeeExecutor)
def waits(peer: Peer) -> Verdict:
    done: list[int] = []
    for number in range(4):
        peer.attach("ticks", after_a_while(lambda number=number: done.append(number)))  # type: ignore[misc]
    peer.publish("ticks", 1)
    return len(done) == 4


def after_a_while(act: Callable[[], object]) -> Handler:
    def handle(_: object) -> None:
        sleep(0.01)
        act()

    return handle


@row("handlers run in parallel", *COLUMNS, PyeeExecutor)
def parallel(peer: Peer) -> Verdict:
    barrier = threading.Barrier(8)
    met: list[int] = []
    for _ in range(8):
        peer.attach("ticks", lambda _: met.append(barrier.wait(PAUSE)))
    with suppress(Exception):
        peer.publish("ticks", 1)
    return eventually(lambda: len(met) == 8)


def fail_in_all(peer: Peer) -> tuple[list[int], set[str]]:
    """Publishes to four handlers that fail; gives those that have been called, and what the publisher is told."""
    called: list[int] = []

    def handler(number: int) -> Handler:
        def handle(_: object) -> None:
            called.append(number)
            raise ValueError(str(number))

        return handle

    for number in range(4):
        peer.attach("ticks", handler(number))
    told: set[str] = set()
    try:
        peer.publish("ticks", 1)
    except Exception as error:
        told = {str(failure) for failure in causes(error) if isinstance(failure, ValueError)}
    return called, told


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it stands for."""
    yield error
    inner = [error.__cause__] if error.__cause__ else []
    for one in (*inner, *getattr(error, "exceptions", ())):
        yield from causes(one)


@row("a failing handler takes nothing from the others", *COLUMNS, PyeeExecutor)
def isolates(peer: Peer) -> Verdict:
    called, _ = fail_in_all(peer)
    return eventually(lambda: len(called) == 4)


@row("every failure reaches the publisher", *COLUMNS, PyeeExecutor)
def tells(peer: Peer) -> Verdict:
    _, told = fail_in_all(peer)
    return "yes" if len(told) == 4 else "the first" if told else "no"


class Observer:
    """Keeps a record of the events that it is in."""

    def __init__(self, peer: Peer, act: Callable[[Any], object]) -> None:
        self._peer = peer
        self._act = act
        self.entered: list[Any] = []
        self.left: list[Any] = []
        self.never_twice = True
        peer.attach("ticks", self.handle)

    def handle(self, message: Any) -> None:
        payload = self._peer.payload(message)
        self.never_twice &= len(self.entered) == len(self.left)
        self.entered.append(payload)
        self._act(payload)
        self.left.append(payload)


def in_one_order(observers: list[Observer]) -> bool:
    return all(observer.entered == observer.left == [1, 2] for observer in observers)


def publish_from_two_threads(peer: Peer) -> list[Observer]:
    """A second publisher comes while the first is in a handler, which waits for it (not for ever)."""
    inside, over = threading.Event(), threading.Event()

    def act(payload: int) -> None:
        if payload == 1 and not inside.is_set():
            inside.set()
            over.wait(PAUSE)

    observers = [Observer(peer, act), Observer(peer, act)]
    first = start(peer.publish, "ticks", 1)
    inside.wait(LIMIT)
    peer.publish("ticks", 2)
    over.set()
    first.join(LIMIT)
    eventually(lambda: all(len(observer.left) == 2 for observer in observers))
    return observers


@row("one order for all observers, whatever thread publishes", *COLUMNS, PyeeExecutor)
def one_order(peer: Peer) -> Verdict:
    return in_one_order(publish_from_two_threads(peer))


@row("an observer is never entered by two threads at once", *COLUMNS, PyeeExecutor)
def one_at_a_time(peer: Peer) -> Verdict:
    return all(observer.never_twice for observer in publish_from_two_threads(peer))


def publish_from_a_handler(peer: Peer) -> list[Observer]:
    """The first observer to get event 1 publishes event 2."""
    published: list[object] = []

    def act(payload: int) -> None:
        if payload == 1 and not published:
            published.append(payload)
            peer.publish("ticks", 2)

    observers = [Observer(peer, act), Observer(peer, act)]
    peer.publish("ticks", 1)
    eventually(lambda: all(len(observer.left) == 2 for observer in observers))
    return observers


@row("what a handler publishes comes after what it handles, for all", *COLUMNS, PsygnalQueued)
def nested_order(peer: Peer) -> Verdict:
    return in_one_order(publish_from_a_handler(peer))


@row("a handler's own publish does not re-enter it", *COLUMNS, PsygnalQueued)
def not_re_entered(peer: Peer) -> Verdict:
    return all(observer.never_twice for observer in publish_from_a_handler(peer))


@row("the same where async handlers await what they publish", Rxbus, Blinker, Abxbus)
async def nested_order_awaited(peer: Peer) -> Verdict:
    seen: list[list[int]] = [[], []]

    def handler(own: list[int]) -> Handler:
        async def handle(message: object) -> None:
            own.append(peer.payload(message))
            if own[-1] == 1 and sum(map(len, seen)) == 1:
                await peer.publish_async("ticks", 2)

        return handle

    for own in seen:
        peer.attach("ticks", handler(own))
    await peer.publish_async("ticks", 1)
    return seen == [[1, 2], [1, 2]]


@row("handlers of two threads may publish to each other", *COLUMNS)
def no_deadlock(peer: Peer) -> Verdict:
    both_inside = threading.Barrier(2)

    def handler(other: str) -> Handler:
        def handle(message: object) -> None:
            if peer.payload(message) == 1:
                with suppress(threading.BrokenBarrierError):
                    both_inside.wait(PAUSE)
                peer.publish(other, 2)

        return handle

    peer.attach("ticks", handler("tocks"))
    peer.attach("tocks", handler("ticks"))
    threads = [start(peer.publish, topic, 1) for topic in ("ticks", "tocks")]
    for thread in threads:
        thread.join(2 * PAUSE)
    return "yes" if not any(thread.is_alive() for thread in threads) else "deadlock"


def publish_to_a_slow_one(peer: Peer) -> Verdict:
    """Whether a handler that does not come to an end stops a publisher that has 200 events for it."""
    gate = threading.Event()
    refused = threading.Event()

    def publish() -> None:
        try:
            for number in range(200):
                peer.publish("ticks", number)
        except Exception:
            refused.set()

    peer.attach("ticks", lambda _: gate.wait(LIMIT))
    publisher = start(publish)
    publisher.join(PAUSE)
    slowed = publisher.is_alive()
    gate.set()
    publisher.join(LIMIT)
    return "refuses" if refused.is_set() else slowed


@row("a slow consumer slows the publisher")
def back_pressure(peer: Peer) -> Verdict:
    return publish_to_a_slow_one(peer)


@row("so does one on another thread", RxbusBuffered, PsygnalThread, PyeeExecutor, RxObserveOn, AbxbusEmit)
def back_pressure_across_threads(peer: Peer) -> Verdict:
    return publish_to_a_slow_one(peer)


@row("patterns of topics", *COLUMNS, PsygnalGroup)
def patterns(peer: Peer) -> Verdict:
    seen: dict[str, list[str]] = {pattern: [] for pattern in ("prices.*", "*", ">")}
    for pattern, own in seen.items():
        peer.attach(pattern, lambda message, own=own: own.append(peer.payload(message)))  # type: ignore[misc]
    for topic in ("prices.eur", "news"):
        peer.publish(topic, topic)
    if seen["prices.*"] == ["prices.eur"]:
        return "yes"
    return "all topics" if ["prices.eur", "news"] in seen.values() else "no"


@row("composition with operators")
def composes(peer: Peer) -> Verdict:
    seen: list[int] = []
    source = peer.source("ticks")
    if not hasattr(source, "pipe"):
        return False
    payloads: Observable[int] = source.pipe(ops.map(peer.payload))
    payloads.filter(lambda x: x > 1).scan(lambda sum, x: sum + x).subscribe(seen.append)
    for number in range(4):
        peer.publish("ticks", number)
    return seen == [2, 5]


@row("async handlers are awaited", Rxbus, Blinker, PsygnalAsync, PyeeAsync, Rx, Abxbus)
async def awaits(peer: Peer) -> Verdict:
    done = [asyncio.Event(), asyncio.Event()]

    def handler(own: asyncio.Event) -> Handler:
        async def handle(_: object) -> None:
            await asyncio.sleep(0.01)
            own.set()

        return handle

    for own in done:
        peer.attach("ticks", handler(own))
    await peer.publish_async("ticks", 1)
    if all(event.is_set() for event in done):
        return "yes"
    return "run, not awaited" if await in_time(done[1]) else "no"


@row("async handlers run in parallel", Rxbus, Blinker, PsygnalAsync, PyeeAsync, Rx, Abxbus, AbxbusParallel)
async def parallel_async(peer: Peer) -> Verdict:
    barrier = asyncio.Barrier(4)
    together = asyncio.Event()

    def handler() -> Handler:
        async def handle(_: object) -> None:
            try:
                async with asyncio.timeout(PAUSE):
                    await barrier.wait()
                together.set()
            except (TimeoutError, asyncio.BrokenBarrierError):
                await barrier.abort()

        return handle

    for _ in range(4):
        peer.attach("ticks", handler())
    await peer.publish_async("ticks", 1)
    return await in_time(together)


@row("handlers see the publisher's contextvars", *COLUMNS, PyeeExecutor)
def context(peer: Peer) -> Verdict:
    variable: ContextVar[str] = ContextVar("variable", default="")
    seen: list[str] = []
    one_is_in = threading.Event()

    def handle() -> None:
        if one_is_in.is_set():
            seen.append(variable.get())
        else:
            one_is_in.set()
            eventually(lambda: bool(seen))  # so that a peer that has threads needs another one now
            seen.append(variable.get())

    def publish() -> None:
        variable.set("publisher's")
        peer.publish("ticks", 1)

    peer.attach("ticks", lambda _: handle())
    peer.attach("ticks", lambda _: handle())
    copy_context().run(publish)
    eventually(lambda: len(seen) == 2)
    return seen == ["publisher's"] * 2


PROGRAM = """
import abxbus, blinker, psygnal, pyee, reactivex.subject, rxbus

class Price(abxbus.BaseEvent[None]):
    value: float

class Prices:
    changed = psygnal.Signal(float)

rxbus.EventBus().publish(rxbus.Topic("prices", float), "high")  # rxbus
blinker.signal("prices").send("high")  # blinker
Prices().changed.emit("high")  # psygnal
pyee.EventEmitter().emit("prices", "high")  # pyee
reactivex.subject.Subject[float]().on_next("high")  # RxPY Subject
Price(value="high")  # abxbus
"""


@cache
def complaints() -> list[str]:
    """The lines of the program that mypy finds wrong."""
    mypy = pytest.importorskip("mypy.api")
    with TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text(PROGRAM)
        options = ("--follow-imports=silent", "--follow-untyped-imports", f"--cache-dir={folder}")
        report, _, _ = mypy.run([*options, str(path)])
    numbers = re.findall(r"program\.py:(\d+): error", report)
    return [PROGRAM.splitlines()[int(number) - 1] for number in numbers]


@row("a type checker finds a payload of the wrong type")
def typed(peer: Peer) -> Verdict:
    return any(line.endswith(f"# {peer.name}") for line in complaints())
