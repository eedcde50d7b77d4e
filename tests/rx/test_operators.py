"""Operators: each pipeline does on the bus what it does on bare Subjects.

A script plays one notification after another at the virtual times 10, 20, 30, ...; what every observer of the pipeline
is told, and when, is compared, and how many observers are still attached at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import reactivex as rx
from reactivex import Notification, Observable
from reactivex import operators as ops
from reactivex.notification import OnError, OnNext
from reactivex.subject import Subject
from reactivex.testing import TestScheduler

from rxbus import BlockingScheduler, EventBus

# -- where the streams come from, and how they are fed


class Wiring(Protocol):
    def subject(self, name: str) -> Subject[Any]: ...
    def stream(self, name: str) -> Observable[Any]: ...
    def emit(self, name: str, value: Any) -> None: ...


class Bare:
    """Streams that are Subjects."""

    def __init__(self) -> None:
        self._subjects: defaultdict[str, Subject[Any]] = defaultdict(Subject)

    def subject(self, name: str) -> Subject[Any]:
        return self._subjects[name]

    def stream(self, name: str) -> Observable[Any]:
        return self.subject(name)

    def emit(self, name: str, value: Any) -> None:
        self.subject(name).on_next(value)


class Topics(Bare):
    """Streams that are topics, fed by `on_next`."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def subject(self, name: str) -> Subject[Any]:
        return self._bus.topic(name)


class Published(Topics):
    """Streams that are subscriptions, fed by `publish`."""

    def stream(self, name: str) -> Observable[Any]:
        return self._bus.subscribe(name).only_payload()

    def emit(self, name: str, value: Any) -> None:
        self._bus.publish(name, value)


WIRINGS = {
    "topics": (Topics, None),
    "published": (Published, None),
    "topics, no workers": (Topics, 0),
    "published, no workers": (Published, 0),
}


@pytest.fixture(params=WIRINGS.values(), ids=WIRINGS)
def on_the_bus(request: pytest.FixtureRequest) -> Iterator[Wiring]:
    """Streams of a bus."""
    kind, workers = request.param
    with EventBus(BlockingScheduler(max_workers=workers)) as bus:
        yield kind(bus)


# -- how a pipeline is played

Told = list[tuple[float, str]]
Pipeline = Callable[..., Observable[Any] | tuple[Observable[Any], ...]]

END = 500.0  # beyond what any script takes
STEP = 10


def play(wiring: Wiring, pipeline: Pipeline, script: str) -> tuple[list[Told], int]:
    """Plays a script; gives what each observer was told, and how many observers were attached at the end."""
    time = TestScheduler()
    names = sorted({token[0] for token in script.split()})
    made = pipeline(time, *(wiring.stream(name) for name in names))
    outputs = made if isinstance(made, tuple) else (made,)
    seen = [time.create_observer() for _ in outputs]
    attached = [output.subscribe(observer, scheduler=time) for output, observer in zip(outputs, seen, strict=True)]
    for step, token in enumerate(script.split(), start=1):
        time.schedule_absolute(STEP * step, lambda *_, token=token: _do(wiring, token))
    time.advance_to(END)
    left = sum(len(wiring.subject(name).observers) for name in names)
    for one in attached:
        one.dispose()
    assert sum(len(wiring.subject(name).observers) for name in names) == 0
    return [[(message.time, _told(message.value)) for message in observer.messages] for observer in seen], left


def _do(wiring: Wiring, token: str) -> None:
    name, what = token[0], token[1:]
    if what == "|":
        wiring.subject(name).on_completed()
    elif what == "#":
        wiring.subject(name).on_error(LookupError("lost"))
    else:
        wiring.emit(name, int(what))


def _told(notification: Notification[Any]) -> str:
    if isinstance(notification, OnNext):
        return repr(notification.value)
    return repr(notification.exception) if isinstance(notification, OnError) else "|"


def reject(value: int) -> Callable[[int], int]:
    """A mapper that fails at one value."""

    def mapper(got: int) -> int:
        if got == value:
            raise ValueError(f"not {value}")
        return got

    return mapper


def inner(time: TestScheduler, value: int) -> Observable[int]:
    """A cold source of two values, one at once and one after 15 ticks."""
    return rx.timer(15, scheduler=time).pipe(ops.map(lambda _: -value), ops.start_with(value))


# -- the pipelines: what they are made of, and a script that shows it

ONE = "a1 a2 a2 a3 a4 a5 a|"
FAILING = "a1 a2 a3 a#"
TWO = "a1 b2 b3 a4 a5 b6 a| b7 b|"

TRANSFORMING: dict[str, tuple[Pipeline, str]] = {
    "map": (lambda t, a: a.pipe(ops.map(lambda v: v * 10)), ONE),
    "map, fluent": (lambda t, a: a.map(lambda v: v * 10).filter(lambda v: v > 10), ONE),
    "map that fails": (lambda t, a: a.pipe(ops.map(reject(2))), ONE),
    "map of a failing source": (lambda t, a: a.pipe(ops.map(str)), FAILING),
    "map_indexed": (lambda t, a: a.pipe(ops.map_indexed(lambda v, i: (i, v))), ONE),
    "scan": (lambda t, a: a.pipe(ops.scan(lambda total, v: total + v, 0)), ONE),
    "reduce": (lambda t, a: a.pipe(ops.reduce(lambda total, v: total + v)), ONE),
    "to_list": (lambda t, a: a.pipe(ops.to_list()), ONE),
    "count": (lambda t, a: a.pipe(ops.count()), ONE),
    "pairwise": (lambda t, a: a.pipe(ops.pairwise()), ONE),
    "do_action": (lambda t, a: _with_side(a), ONE),
    "start_with": (lambda t, a: a.pipe(ops.start_with(8, 9)), ONE),
    "materialize": (lambda t, a: a.pipe(ops.materialize(), ops.map(str)), FAILING),
    "materialize and dematerialize": (lambda t, a: a.pipe(ops.materialize(), ops.dematerialize()), FAILING),
    "timestamp": (lambda t, a: a.pipe(ops.timestamp(scheduler=t), ops.map(lambda v: (v.value, v.timestamp))), ONE),
    "time_interval": (lambda t, a: a.pipe(ops.time_interval(scheduler=t), ops.map(lambda v: v.interval)), ONE),
}

FILTERING: dict[str, tuple[Pipeline, str]] = {
    "filter": (lambda t, a: a.pipe(ops.filter(lambda v: v % 2)), ONE),
    "filter that fails": (lambda t, a: a.pipe(ops.filter(reject(3))), ONE),
    "distinct_until_changed": (lambda t, a: a.pipe(ops.distinct_until_changed()), ONE),
    "distinct": (lambda t, a: a.pipe(ops.distinct(lambda v: v % 2)), ONE),
    "take": (lambda t, a: a.pipe(ops.take(2)), ONE),
    "take_last": (lambda t, a: a.pipe(ops.take_last(2)), ONE),
    "take_while": (lambda t, a: a.pipe(ops.take_while(lambda v: v < 3, inclusive=True)), ONE),
    "take_until": (lambda t, a, b: a.pipe(ops.take_until(b)), "a1 a2 b0 a3 b1"),
    "take_until_with_time": (lambda t, a: a.pipe(ops.take_until_with_time(35.0, scheduler=t)), ONE),
    "skip": (lambda t, a: a.pipe(ops.skip(2)), ONE),
    "skip_last": (lambda t, a: a.pipe(ops.skip_last(2)), ONE),
    "skip_while": (lambda t, a: a.pipe(ops.skip_while(lambda v: v < 3)), ONE),
    "skip_until": (lambda t, a, b: a.pipe(ops.skip_until(b)), "a1 a2 b0 a3 b1 a4 a|"),
    "first": (lambda t, a: a.pipe(ops.first()), ONE),
    "last of nothing": (lambda t, a: a.pipe(ops.last()), "a|"),
    "element_at": (lambda t, a: a.pipe(ops.element_at(3)), ONE),
    "slice": (lambda t, a: a[1:4:2], ONE),
    "ignore_elements": (lambda t, a: a.pipe(ops.ignore_elements()), ONE),
    "contains": (lambda t, a: a.pipe(ops.contains(3)), ONE),
}

COMBINING: dict[str, tuple[Pipeline, str]] = {
    "merge": (lambda t, a, b: rx.merge(a, b), TWO),
    "merge of one that fails": (lambda t, a, b: rx.merge(a, b), "a1 b2 a# b3"),
    "merge of one attached later": (lambda t, a, b: rx.merge(a.pipe(ops.start_with(0)), b), TWO),
    "merge with itself": (lambda t, a: rx.merge(a, a.pipe(ops.map(lambda v: -v))).pipe(ops.count()), ONE),
    "zip": (lambda t, a, b: rx.zip(a, b), TWO),
    "zip with itself": (lambda t, a: rx.zip(a, a.pipe(ops.skip(1))), ONE),
    "combine_latest": (lambda t, a, b: rx.combine_latest(a, b), TWO),
    "with_latest_from": (lambda t, a, b: a.pipe(ops.with_latest_from(b)), TWO),
    "with_latest_from two": (lambda t, a, b, c: a.pipe(ops.with_latest_from(b, c)), "a1 b2 a3 c4 a5 b6 a7 a| b| c|"),
    "zip with an iterable": (lambda t, a: a.pipe(ops.zip_with_iterable("xyz")), ONE),
    "fork_join": (lambda t, a, b: rx.fork_join(a, b), TWO),
    "concat": (lambda t, a, b: rx.concat(a, b), TWO),
    "concat by +": (lambda t, a, b: a + b, TWO),
    "amb": (lambda t, a, b: rx.amb(a, b), "b1 a2 b3 b|"),
    "sequence_equal": (lambda t, a, b: a.pipe(ops.sequence_equal(b)), "a1 b1 a2 a| b2 b|"),
}

INNER: dict[str, tuple[Pipeline, str]] = {
    "flat_map": (lambda t, a: a.pipe(ops.flat_map(lambda v: inner(t, v))), ONE),
    "flat_map to a hot stream": (lambda t, a, b: a.pipe(ops.flat_map(lambda v: b.pipe(ops.take(1)))), "a1 b2 a3 b4 a|"),
    "flat_map to its own source": (lambda t, a: a.pipe(ops.take(1), ops.flat_map(lambda _: a)), ONE),
    "flat_map that fails": (lambda t, a: a.pipe(ops.flat_map(lambda v: rx.throw(KeyError(v)))), ONE),
    "flat_map_latest": (lambda t, a: a.pipe(ops.flat_map_latest(lambda v: inner(t, v))), ONE),
    "concat_map": (lambda t, a: a.pipe(ops.concat_map(lambda v: inner(t, v))), ONE),
    "switch_latest": (lambda t, a: a.pipe(ops.map(lambda v: inner(t, v)), ops.switch_latest()), ONE),
    "switch_latest to a hot stream": (
        lambda t, a, b: a.pipe(ops.map(lambda v: b.pipe(ops.map(lambda w: (v, w)))), ops.switch_latest()),
        "a1 b2 b3 a4 b5 a| b6 b|",
    ),
    "merge two at a time": (
        lambda t, a: a.pipe(ops.map(lambda v: inner(t, v)), ops.merge(max_concurrent=2)),
        ONE,
    ),
    "expand": (lambda t, a: a.pipe(ops.expand(lambda v: rx.of(v + 1) if v < 3 else rx.empty())), ONE),
}

WINDOWING: dict[str, tuple[Pipeline, str]] = {
    "buffer_with_count": (lambda t, a: a.pipe(ops.buffer_with_count(2)), ONE),
    "buffer_with_count and skip": (lambda t, a: a.pipe(ops.buffer_with_count(3, 1)), ONE),
    "buffer_with_time": (lambda t, a: a.pipe(ops.buffer_with_time(25.0, scheduler=t)), ONE),
    "buffer_with_time_or_count": (lambda t, a: a.pipe(ops.buffer_with_time_or_count(25.0, 2, scheduler=t)), ONE),
    "buffer": (lambda t, a, b: a.pipe(ops.buffer(b)), "a1 a2 b0 a3 b0 b0 a4 a|"),
    "buffer_when": (lambda t, a: a.pipe(ops.buffer_when(lambda: rx.timer(25.0, scheduler=t))), ONE),
    "buffer_toggle": (lambda t, a, b: a.pipe(ops.buffer_toggle(b, lambda _: inner(t, 0).pipe(ops.skip(1)))), TWO),
    "window_with_count": (lambda t, a: _windows(a.pipe(ops.window_with_count(2))), ONE),
    "window_with_time": (lambda t, a: _windows(a.pipe(ops.window_with_time(25.0, scheduler=t))), ONE),
    "window of a failing source": (lambda t, a: _windows(a.pipe(ops.window_with_count(2))), FAILING),
    "window": (lambda t, a, b: _windows(a.pipe(ops.window(b))), "a1 a2 b0 a3 b0 b0 a4 a|"),
    "group_by": (
        lambda t, a: a.pipe(
            ops.group_by(lambda v: v % 2), ops.flat_map(lambda group: group.pipe(ops.map(lambda v: (group.key, v))))
        ),
        ONE,
    ),
    "group_by_until": (
        lambda t, a: a.pipe(
            ops.group_by_until(lambda v: v % 2, None, lambda group: group.pipe(ops.skip(1))),
            ops.flat_map(lambda group: group.pipe(ops.to_list())),
        ),
        ONE,
    ),
    "partition": (lambda t, a: tuple(a.pipe(ops.partition(lambda v: v % 2 == 0))), ONE),
}

SHARING: dict[str, tuple[Pipeline, str]] = {
    "share": (lambda t, a: _two_of(a.pipe(ops.share())), ONE),
    "share, and merge": (lambda t, a: rx.merge(*_two_of(a.pipe(ops.share()))), ONE),
    "share of one that ends": (lambda t, a: _two_of(a.pipe(ops.take(2), ops.share())), ONE),
    "replay": (lambda t, a: _early_and_late(t, a.pipe(ops.replay(buffer_size=2), ops.ref_count())), ONE),
    "replay of a failed source": (
        lambda t, a: _early_and_late(t, a.pipe(ops.replay(buffer_size=2), ops.ref_count())),
        FAILING,
    ),
    "publish_value": (lambda t, a: _early_and_late(t, a.pipe(ops.publish_value(0), ops.ref_count())), ONE),
    "publish with a selector": (lambda t, a: a.pipe(ops.publish(lambda p: rx.zip(p, p.pipe(ops.skip(1))))), ONE),
}

RECOVERING: dict[str, tuple[Pipeline, str]] = {
    "catch": (lambda t, a, b: a.pipe(ops.map(reject(2)), ops.catch(b)), "a1 a2 b3 a4 b5 b|"),
    "catch of the source's error": (lambda t, a, b: a.pipe(ops.catch(lambda error, _: b)), "a1 a# b3 b|"),
    "retry": (lambda t, a: a.pipe(ops.map(reject(2)), ops.retry()), ONE),
    "retry twice": (lambda t, a: a.pipe(ops.map(reject(2)), ops.retry(2)), ONE),
    "retry of a dead source": (lambda t, a: a.pipe(ops.retry(3)), FAILING),
    "on_error_resume_next": (lambda t, a, b: a.pipe(ops.on_error_resume_next(b)), "a1 a# b3 b|"),
    "repeat": (lambda t, a: a.pipe(ops.take(2), ops.repeat(2)), ONE),
    "default_if_empty": (lambda t, a: a.pipe(ops.default_if_empty(7)), "a|"),
}

TIMING: dict[str, tuple[Pipeline, str]] = {
    "debounce": (lambda t, a, b: a.pipe(ops.debounce(15.0, scheduler=t)), "a1 a2 b0 b0 a3 b0 a4 a|"),
    "throttle_first": (lambda t, a: a.pipe(ops.throttle_first(25.0, scheduler=t)), ONE),
    "sample": (lambda t, a: a.pipe(ops.sample(25.0, scheduler=t)), ONE),
    "sample by another stream": (lambda t, a, b: a.pipe(ops.sample(b)), "a1 a2 b0 b0 a3 b0 a|"),
    "delay": (lambda t, a: a.pipe(ops.delay(15.0, scheduler=t)), ONE),
    "delay of a failing source": (lambda t, a: a.pipe(ops.delay(15.0, scheduler=t)), FAILING),
    "delay_subscription": (lambda t, a: a.pipe(ops.delay_subscription(25.0, scheduler=t)), ONE),
    "observe_on": (lambda t, a: a.pipe(ops.observe_on(t)), ONE),
    "timeout": (lambda t, a, b: a.pipe(ops.timeout(15.0, scheduler=t)), "a1 a2 b0 b0 a3"),
    "timeout with another stream": (lambda t, a, b: a.pipe(ops.timeout(15.0, b, scheduler=t)), "a1 a2 b0 b7 a3 b|"),
    "throttle_with_mapper": (
        lambda t, a, b: a.pipe(ops.throttle_with_mapper(lambda v: rx.timer(15.0, scheduler=t))),
        "a1 a2 b0 b0 a3 b0 b0",
    ),
}

FAMILIES = {
    "transforming": TRANSFORMING,
    "filtering": FILTERING,
    "combining": COMBINING,
    "inner streams": INNER,
    "windowing": WINDOWING,
    "sharing": SHARING,
    "recovering": RECOVERING,
    "timing": TIMING,
}

CASES = [
    pytest.param(*case, id=f"{family}: {name}") for family, cases in FAMILIES.items() for name, case in cases.items()
]


def _with_side(source: Observable[Any]) -> Observable[Any]:
    """The source, and before each of its values what `do_action` noted of the value before."""
    notes: list[Any] = []
    return source.pipe(ops.map(lambda v: (tuple(notes), v)), ops.do_action(lambda pair: notes.append(pair[1])))


def _windows(windows: Observable[Observable[Any]]) -> Observable[Any]:
    """The windows, numbered, with what is in them and how they end."""
    return windows.pipe(
        ops.map_indexed(lambda window, n: window.pipe(ops.materialize(), ops.map(lambda v: (n, str(v))))),
        ops.merge_all(),
    )


def _two_of(shared: Observable[Any]) -> tuple[Observable[Any], Observable[Any]]:
    return shared, shared.pipe(ops.map(lambda v: -v))


def _early_and_late(time: TestScheduler, shared: Observable[Any]) -> tuple[Observable[Any], Observable[Any]]:
    return shared, shared.pipe(ops.delay_subscription(35.0, scheduler=time))


@pytest.mark.parametrize(("pipeline", "script"), CASES)
def test_a_pipeline_does_on_the_bus_what_it_does_on_subjects(
    on_the_bus: Wiring, pipeline: Pipeline, script: str
) -> None:
    told, left = play(Bare(), pipeline, script)
    assert all(told), "the script shows nothing"
    assert play(on_the_bus, pipeline, script) == (told, left)


def test_the_comparison_sees_values_times_ends_and_who_is_left() -> None:
    """The player itself: what it gives for a pipeline whose outcome is known."""
    failing = play(Bare(), lambda t, a: a.pipe(ops.map(reject(3))), "a1 a2 a3")
    assert failing == ([[(10, "1"), (20, "2"), (30, "ValueError('not 3')")]], 0)
    two = play(Bare(), lambda t, a, b: (rx.merge(a, b), b), "a1 b2 b|")
    assert two == ([[(10, "1"), (20, "2")], [(20, "2"), (30, "|")]], 1)


def test_what_is_subscribed_to_by_a_pattern_composes_too(any_bus: EventBus) -> None:
    """A pattern gives an Observable like any other; the end of one of its topics is not its own."""
    seen: list[object] = []
    pairs = any_bus.subscribe("prices.*").pipe(ops.map(lambda event: (event.topic, event.payload)), ops.pairwise())
    pairs.subscribe(seen.append)
    any_bus.publish("prices.eur", 1)
    any_bus.publish("prices.usd", 2)
    any_bus.topic("prices.eur").on_completed()
    any_bus.publish("prices.usd", 3)
    assert seen == [(("prices.eur", 1), ("prices.usd", 2)), (("prices.usd", 2), ("prices.usd", 3))]


@pytest.mark.parametrize("payload", [None, False, 0, "", (), rx.empty(), ValueError("a value")], ids=repr)
def test_any_object_passes_through_operators_as_it_is(any_bus: EventBus, payload: Any) -> None:
    seen: list[object] = []
    any_bus.subscribe("t").only_payload().pipe(ops.map(lambda v: [v]), ops.start_with(["first"])).subscribe(seen.append)
    any_bus.publish("t", payload)
    assert seen[0] == ["first"]
    assert seen[1][0] is payload
