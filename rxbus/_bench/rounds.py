"""What publishing costs, measured in rounds that the peers take turns in.

Figures of different runs cannot be compared, nor those of different minutes. So all peers publish within one process,
in short rounds in an order that is drawn anew for each: what disturbs the machine meanwhile disturbs all of them alike.
"""

from __future__ import annotations

import gc
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from statistics import median, quantiles
from time import perf_counter, perf_counter_ns
from typing import NamedTuple

import msgspec

from rxbus._bench.peers import Peer, Publish, Tally
from rxbus.errors import RxBusError

ROUNDS = 20  # that the time of a scenario is meant for, if one publish is not longer than a turn
SHORTEST = 0.0005  # seconds of a turn
SET_UP = 5.0  # seconds that attaching all observers of a scenario may take, however little time there is
SAMPLES = 5_000  # publishes that are timed in one turn, at most: their times are kept


class Miscounted(RxBusError):
    """A peer has not made the deliveries that it was to make: what has been measured means nothing.

    Attributes:
        peer: Its name.
        wanted: How many deliveries it was to make.
        made: How many it has made.
    """

    def __init__(self, peer: str, wanted: int, made: int) -> None:
        super().__init__(peer, wanted, made)
        self.peer = peer
        self.wanted = wanted
        self.made = made

    def __str__(self) -> str:
        return f"{self.peer} has made {self.made:,} deliveries instead of {self.wanted:,}"


class PeerFailed(RxBusError):
    """A peer has raised an error where it was to publish.

    Attributes:
        peer: Its name.
        error: The error.
    """

    def __init__(self, peer: str, error: Exception) -> None:
        super().__init__(peer, error)
        self.peer = peer
        self.error = error

    def __str__(self) -> str:
        return f"{self.peer} has failed: {self.error!r}"


class Load(NamedTuple):
    """What one peer does in one turn: so many publishes, and so many deliveries for each of them."""

    name: str
    run: Callable[[], object]
    publishes: int
    deliveries: int
    tally: Tally

    def seconds(self) -> float:
        """Runs it; gives the time per publish, once all deliveries have been made.

        Raises:
            Miscounted: They have not.
            PeerFailed: The peer has raised an error.
        """
        before = self.tally.total
        start = perf_counter()
        try:
            self.run()
        except Exception as error:
            raise PeerFailed(self.name, error) from error
        seconds = perf_counter() - start
        wanted, made = self.publishes * self.deliveries, self.tally.total - before
        if made != wanted:
            raise Miscounted(self.name, wanted, made)
        return seconds / self.publishes


class Scenario(msgspec.Struct, frozen=True):
    """So many topics, and so many observers on each. What is published goes to one topic after the other."""

    observers: int
    topics: int

    def __str__(self) -> str:
        observers = f"{self.observers:,} observer{'s' * (self.observers != 1)}"
        return f"{observers}, 1 topic" if self.topics == 1 else f"{observers} on each of {self.topics:,} topics"


class Figures(msgspec.Struct, frozen=True):
    """What has been measured of a peer in a scenario.

    Attributes:
        observers: How many there were on each topic.
        topics: How many topics there were.
        peer: The peer's name.
        rounds: How many turns it had.
        publishes: How often it published, all in all.
        per_second: Publishes per second: the median of its turns.
        p50_us: Microseconds until all observers had acknowledged: the median of the publishes that were timed.
        p99_us: What 99 of 100 of them took at most.
        max_us: The longest.
    """

    observers: int
    topics: int
    peer: str
    rounds: int
    publishes: int
    per_second: float
    p50_us: float
    p99_us: float
    max_us: float


class Contender:
    """A peer in a scenario. In each of its turns it publishes twice: timed as a whole, and one by one."""

    def __init__(self, peer: Peer, scenario: Scenario) -> None:
        self._peer = peer
        self._scenario = scenario
        self._tally = Tally()
        self._publishers: list[Publish] = []
        self._seconds: list[float] = []  # per publish, of each turn
        self._times = array("q")  # nanoseconds, of publishes one by one
        self._batch = 1
        self._publishes = 0

    def set_up(self) -> Iterator[None]:
        """Attaches the observers, step by step."""
        for number in range(self._scenario.topics):
            topic = f"bench.t{number}"
            for _ in range(self._scenario.observers):
                self._peer.attach(topic, self._tally.handler())
                yield
            self._publishers.append(self._peer.publisher(topic))
            yield
        self._turns = cycle(self._publishers)

    def warm_up(self, quantum: float) -> None:
        """Publishes, uncounted, until it is known how many publishes fill a turn."""
        while (seconds := self._quickest()) * self._batch < quantum / 4:
            self._batch *= 4
        self._batch = max(1, round(quantum / seconds))

    def take_turn(self) -> None:
        seconds = self._whole().seconds()
        self._one_by_one().seconds()
        self._seconds.append(seconds)

    def figures(self) -> Figures | None:
        """What there is up to now, if it has had a turn."""
        if not self._seconds:
            return None
        times = [nanoseconds / 1000 for nanoseconds in self._times]
        hundredths = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
        return Figures(
            self._scenario.observers,
            self._scenario.topics,
            self._peer.name,
            len(self._seconds),
            self._publishes,
            round(1 / median(self._seconds), 1),
            round(hundredths[49], 3),
            round(hundredths[98], 3),
            round(max(times), 3),
        )

    def _quickest(self) -> float:
        """Of three: a first publish may take long, and what else the machine does must not make all turns short."""
        return min(self._whole().seconds() for _ in range(3))

    def _whole(self) -> Load:
        publishers = self._next(self._batch)
        return self._load(partial(publish_each, publishers), len(publishers))

    def _one_by_one(self) -> Load:
        publishers = self._next(min(self._batch, SAMPLES))
        return self._load(partial(time_each, publishers, self._times), len(publishers))

    def _load(self, run: Callable[[], object], publishes: int) -> Load:
        self._publishes += publishes
        return Load(self._peer.name, run, publishes, self._scenario.observers, self._tally)

    def _next(self, publishes: int) -> list[Publish]:
        return list(islice(self._turns, publishes))


def publish_each(publishers: list[Publish]) -> None:
    for publish in publishers:
        publish(1)


def time_each(publishers: list[Publish], times: array[int]) -> None:
    """Adds what each takes, in nanoseconds, together with one look at the clock."""
    now, add = perf_counter_ns, times.append
    for publish in publishers:
        start = now()
        publish(1)
        add(now() - start)


def measure(
    scenario: Scenario,
    kinds: Sequence[type[Peer]],
    seconds: float,
    stopped: Callable[[], bool] = lambda: False,
    told: Callable[[int], object] = lambda rounds: None,
) -> list[Figures]:
    """Has peers take turns in a scenario.

    Args:
        scenario: The scenario.
        kinds: The peers' adapters.
        seconds: How long it may take, about: half of it at least is for the turns, one of each peer in any case.
        stopped: Looked at between turns: whether to make do with what there is.
        told: Called after each round, with how many there have been.

    Returns:
        What has been measured: nothing, where attaching all observers takes longer than that, and than `SET_UP`.

    Raises:
        Miscounted: A peer has not made its deliveries.
        PeerFailed: A peer has raised an error.
    """
    begin = perf_counter()
    end = begin + seconds

    with ExitStack() as ending:
        contenders = []
        for kind in kinds:
            peer = kind()
            ending.callback(peer.close)
            contenders.append(Contender(peer, scenario))
            for _ in contenders[-1].set_up():
                if stopped() or perf_counter() >= max(end, begin + SET_UP):
                    return []
        ending.enter_context(frozen_garbage())
        _take_turns(contenders, max(end, perf_counter() + seconds / 2), stopped, told)
        return [figures for contender in contenders if (figures := contender.figures())]


def _take_turns(
    contenders: list[Contender], end: float, stopped: Callable[[], bool], told: Callable[[int], object]
) -> None:
    quantum = max(SHORTEST, (end - perf_counter()) / (2 * ROUNDS * len(contenders)))
    for contender in contenders:
        contender.warm_up(quantum)
    order, drawn, rounds = list(contenders), random.Random(0), 0
    while not stopped() and (perf_counter() < end or rounds == 0):
        drawn.shuffle(order)
        for contender in order:
            if stopped():
                return
            contender.take_turn()
        rounds += 1
        told(rounds)


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Keeps the garbage collector from looking through what others have attached on each peer's time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
