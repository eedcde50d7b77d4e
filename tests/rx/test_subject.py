"""A topic is a Subject: what RxPY promises of its own Subject holds for `bus.topic("t")`, each scenario on both.

The last few tests are about where a topic differs on purpose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import reactivex as rx
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import SerialDisposable
from reactivex.internal import DisposedException
from reactivex.notification import OnCompleted, OnError, OnNext
from reactivex.observer import Observer
from reactivex.subject import Subject
from reactivex.testing import Recorded, TestScheduler
from reactivex.testing.mockobserver import MockObserver

from rxbus import EventBus, PublishError

R = TypeVar("R")
Scenario = Callable[[Subject[Any]], R]
Outcome = list[tuple[float, str]]

ERROR = ValueError("broken")


def on_both(bus: EventBus, scenario: Scenario[R]) -> R:
    """Plays a scenario on a bare Subject and on a topic, sees that they agree, and gives the outcome."""
    bare = scenario(Subject())
    assert scenario(bus.topic("t")) == bare
    return bare


class Diary:
    """An observer, no `Observer`: it notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[object] = []

    def on_next(self, value: Any) -> None:
        self.notes.append(value)

    def on_error(self, error: Exception) -> None:
        self.notes.append(("error", error))

    def on_completed(self) -> None:
        self.notes.append("completed")


# -- driven by a hot observable, with observers that come and go at virtual times

VISITS = {"first": (300, 600, 800), "second": (400, 700), "third": (900, 950)}  # each comes, goes, perhaps goes again

BEFORE = "70:1 110:2 220:3 270:4 340:5 410:6 520:7 "

TIMELINES = {
    "infinite": (
        BEFORE + "630:8 710:9 870:10 940:11 1020:12",
        {"first": "340:5 410:6 520:7", "second": "410:6 520:7 630:8", "third": "940:11"},
    ),
    "finite": (
        BEFORE + "630:| 640:9 650:| 660:#",
        {"first": "340:5 410:6 520:7", "second": "410:6 520:7 630:|", "third": "900:|"},
    ),
    "error": (
        BEFORE + "630:# 640:9 650:| 660:#",
        {"first": "340:5 410:6 520:7", "second": "410:6 520:7 630:#", "third": "900:#"},
    ),
    "cancelled": (
        "630:| 640:9 650:| 660:#",
        {"first": "", "second": "630:|", "third": "900:|"},
    ),
}


def timeline(text: str) -> list[Recorded[Any]]:
    """Reads `time:value`, where `|` is the completion and `#` an error."""
    ends = {"|": OnCompleted(), "#": OnError(ERROR)}
    pairs = [item.split(":") for item in text.split()]
    return [Recorded(int(at), ends[what] if what in ends else OnNext(int(what))) for at, what in pairs]


def visit(time: TestScheduler, subject: Subject[Any], come: int, *go: int) -> MockObserver[Any]:
    """Attaches an observer at a virtual time, and detaches it at others."""
    seen: MockObserver[Any] = time.create_observer()
    attached = SerialDisposable()
    time.schedule_absolute(come, lambda *_: attached.set_disposable(subject.subscribe(seen)))
    for at in go:
        time.schedule_absolute(at, lambda *_: attached.dispose())
    return seen


@pytest.mark.parametrize(("messages", "expected"), TIMELINES.values(), ids=TIMELINES)
def test_observers_get_what_is_emitted_while_they_are_there(
    any_bus: EventBus, messages: str, expected: dict[str, str]
) -> None:
    def play(subject: Subject[Any]) -> dict[str, list[Recorded[Any]]]:
        time = TestScheduler()
        source = time.create_hot_observable(timeline(messages))
        feed = SerialDisposable()
        time.schedule_absolute(200, lambda *_: feed.set_disposable(source.subscribe(subject)))
        time.schedule_absolute(1000, lambda *_: feed.dispose())
        seen = {name: visit(time, subject, *times) for name, times in VISITS.items()}
        time.start()
        return {name: observer.messages for name, observer in seen.items()}

    assert on_both(any_bus, play) == {name: timeline(text) for name, text in expected.items()}


def test_how_many_observers_there_are_is_told_at_any_time(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> list[int]:
        time = TestScheduler()
        for times in VISITS.values():
            visit(time, subject, *times)
        counts: list[int] = []
        for at in (250, 350, 450, 650, 750, 925, 975):
            time.schedule_absolute(at, lambda *_: counts.append(len(subject.observers)))
        time.start()
        return counts

    assert on_both(bus, play) == [0, 1, 2, 1, 0, 1, 0]


# -- how one attaches

ATTACHING: dict[str, Callable[[Subject[Any], Diary], abc.DisposableBase]] = {
    "an Observer": lambda s, d: s.subscribe(Observer(d.on_next, d.on_error, d.on_completed)),
    "an object with on_next": lambda s, d: s.subscribe(d),
    "callbacks": lambda s, d: s.subscribe(d.on_next, d.on_error, d.on_completed),
    "callbacks by name": lambda s, d: s.subscribe(on_completed=d.on_completed, on_error=d.on_error, on_next=d.on_next),
    "only on_next": lambda s, d: s.subscribe(d.on_next),
    "only on_completed": lambda s, d: s.subscribe(on_completed=d.on_completed),
    "with a scheduler": lambda s, d: s.subscribe(d.on_next, d.on_error, d.on_completed, scheduler=TestScheduler()),
    "another Subject": lambda s, d: _through(s, Subject(), d),
    "behind an operator": lambda s, d: s.pipe(ops.as_observable()).subscribe(d),
}


def _through(subject: Subject[Any], second: Subject[Any], diary: Diary) -> abc.DisposableBase:
    second.subscribe(diary.on_next, diary.on_error, diary.on_completed)
    return subject.subscribe(second)


@pytest.mark.parametrize("attach", ATTACHING.values(), ids=ATTACHING)
def test_every_way_to_attach_gives_the_same_stream(
    bus: EventBus, attach: Callable[[Subject[Any], Diary], abc.DisposableBase]
) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        attach(subject, diary)
        subject.on_next(1)
        subject.on_next(None)
        subject.on_completed()
        return diary.notes

    assert on_both(bus, play)


def test_attaching_without_callbacks_takes_values_and_completion_in_silence(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> tuple[int, int]:
        subject.subscribe()
        attached = len(subject.observers)
        subject.on_next(1)
        subject.on_completed()
        return attached, len(subject.observers)

    assert on_both(bus, play) == (1, 0)


def test_what_is_attached_twice_gets_everything_twice(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        first, _ = subject.subscribe(diary), subject.subscribe(diary)
        subject.on_next(1)
        first.dispose()
        first.dispose()
        subject.on_next(2)
        return diary.notes

    assert on_both(bus, play) == [1, 1, 2]


def test_an_observer_may_leave_while_it_is_called(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        attached = SerialDisposable()
        subject.subscribe(diary)
        attached.disposable = subject.subscribe(lambda _: attached.dispose())
        subject.on_next(1)
        subject.on_next(2)
        return [*diary.notes, len(subject.observers)]

    assert on_both(bus, play) == [1, 2, 1]


def test_who_attaches_while_a_value_is_emitted_gets_only_the_next_one(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        subject.pipe(ops.take(1)).subscribe(lambda _: subject.subscribe(diary))
        subject.on_next(1)
        subject.on_next(2)
        return diary.notes

    assert on_both(bus, play) == [2]


# -- how it ends

ENDS: dict[str, Callable[[Subject[Any]], None]] = {
    "completed": lambda subject: subject.on_completed(),
    "failed": lambda subject: subject.on_error(ERROR),
}


@pytest.mark.parametrize(("end", "told"), [("completed", "completed"), ("failed", ("error", ERROR))], ids=ENDS)
def test_nothing_comes_after_the_end(bus: EventBus, end: str, told: object) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        subject.subscribe(diary)
        subject.on_next(1)
        ENDS[end](subject)
        subject.on_next(2)
        subject.on_completed()
        subject.on_error(KeyError("late"))
        return diary.notes

    assert on_both(bus, play) == [1, told]


@pytest.mark.parametrize(("end", "told"), [("completed", "completed"), ("failed", ("error", ERROR))], ids=ENDS)
def test_who_comes_after_the_end_is_told_how_it_ended(bus: EventBus, end: str, told: object) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        subject.on_next(1)
        ENDS[end](subject)
        diary = Diary()
        subject.subscribe(diary).dispose()
        return [*diary.notes, len(subject.observers)]

    assert on_both(bus, play) == [told, 0]


def test_who_comes_after_an_error_without_on_error_gets_it_raised(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> Exception | None:
        subject.on_error(ERROR)
        return _raised(lambda: subject.subscribe(lambda _: None))

    assert on_both(bus, play) is ERROR


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda subject: None, (False, False, None)),
        (lambda subject: subject.on_completed(), (True, False, None)),
        (lambda subject: subject.on_error(ERROR), (True, False, ERROR)),
        (lambda subject: subject.dispose(), (True, True, None)),
        (lambda subject: (subject.on_error(ERROR), subject.dispose()), (True, True, None)),
    ],
    ids=["open", "completed", "failed", "disposed", "failed and disposed"],
)
def test_its_state_can_be_read(bus: EventBus, end: Callable[[Subject[Any]], object], state: tuple[object, ...]) -> None:
    def play(subject: Subject[Any]) -> tuple[object, ...]:
        end(subject)
        return subject.is_stopped, subject.is_disposed, subject.exception

    assert on_both(bus, play) == state


# -- disposed

USES: dict[str, Callable[[Subject[Any]], object]] = {
    "on_next": lambda subject: subject.on_next(1),
    "on_error": lambda subject: subject.on_error(ERROR),
    "on_completed": lambda subject: subject.on_completed(),
    "subscribe": lambda subject: subject.subscribe(lambda _: None),
    "subscribe behind an operator": lambda subject: subject.pipe(ops.map(str)).subscribe(lambda _: None),
    "check_disposed": lambda subject: subject.check_disposed(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_once_disposed_any_use_raises(bus: EventBus, use: Callable[[Subject[Any]], object]) -> None:
    def play(subject: Subject[Any]) -> list[type]:
        before = _raised(lambda: subject.check_disposed())
        subject.dispose()
        subject.dispose()
        return [type(before), type(_raised(lambda: use(subject)))]

    assert on_both(bus, play) == [type(None), DisposedException]


def test_an_ended_subject_that_is_disposed_raises_as_well(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> type:
        subject.on_completed()
        subject.dispose()
        return type(_raised(lambda: subject.subscribe(lambda _: None)))

    assert on_both(bus, play) is DisposedException


@pytest.mark.parametrize("operators", [(), (ops.map(str),)], ids=["directly", "behind an operator"])
def test_an_observer_with_on_error_is_told_that_the_subject_is_disposed(
    bus: EventBus, operators: tuple[Callable[[Observable[Any]], Observable[Any]], ...]
) -> None:
    def play(subject: Subject[Any]) -> list[type]:
        told: list[type] = []
        subject.dispose()
        raised = _raised(
            lambda: subject.pipe(*operators).subscribe(lambda _: None, lambda error: told.append(type(error)))
        )
        return [*told, type(raised)]

    assert on_both(bus, play) == [DisposedException, type(None)]


def test_dispose_detaches_all_observers_without_a_word(bus: EventBus) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        attached = subject.subscribe(diary)
        subject.on_next(1)
        subject.dispose()
        attached.dispose()
        return [*diary.notes, len(subject.observers)]

    assert on_both(bus, play) == [1, 0]


# -- what it is

KINDS = [Subject, Observable, Observer, abc.SubjectBase, abc.ObservableBase, abc.ObserverBase, abc.DisposableBase]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_a_subject_is(bus: EventBus, kind: type) -> None:
    assert on_both(bus, lambda subject: isinstance(subject, kind))


FACADES: dict[str, Callable[[Subject[Any]], Callable[[Any], object]]] = {
    "as_observer": lambda subject: subject.as_observer().on_next,
    "to_notifier": lambda subject: lambda value: subject.to_notifier()(OnNext(value)),
    "the do operator": lambda subject: lambda value: rx.of(value).pipe(ops.do(subject)).subscribe(),
}


@pytest.mark.parametrize("facade", FACADES.values(), ids=FACADES)
def test_it_can_be_fed_behind_a_facade(
    bus: EventBus, facade: Callable[[Subject[Any]], Callable[[Any], object]]
) -> None:
    def play(subject: Subject[Any]) -> list[object]:
        diary = Diary()
        subject.subscribe(diary)
        facade(subject)(1)
        return diary.notes

    assert on_both(bus, play)[0] == 1


# -- where a topic differs on purpose


def test_a_failing_observer_takes_nothing_from_the_others(any_bus: EventBus) -> None:
    """A bare Subject stops at the first failure; a topic goes on and tells the caller when all are done."""

    def play(subject: Subject[Any]) -> tuple[list[object], type]:
        diary = Diary()
        subject.subscribe(lambda value: 1 // value)
        subject.subscribe(diary)
        return diary.notes, type(_raised(lambda: subject.on_next(0)))

    assert play(Subject()) == ([], ZeroDivisionError)
    assert play(any_bus.topic("t")) == ([0], PublishError)


def test_an_observer_that_feeds_its_own_subject_is_not_re_entered(any_bus: EventBus) -> None:
    """A bare Subject calls it again inside its own call; a topic when it has returned, yet before `on_next` returns."""

    def play(subject: Subject[Any]) -> list[tuple[str, int]]:
        steps: list[tuple[str, int]] = []

        def feed(value: int) -> None:
            steps.append(("in", value))
            if value < 2:
                subject.on_next(value + 1)
            steps.append(("out", value))

        subject.subscribe(feed)
        subject.on_next(1)
        return steps

    assert play(Subject()) == [("in", 1), ("in", 2), ("out", 2), ("out", 1)]
    assert play(any_bus.topic("t")) == [("in", 1), ("out", 1), ("in", 2), ("out", 2)]


@pytest.mark.rxbus_allow("failures")
def test_an_observer_without_on_error_keeps_the_error_from_nobody(
    any_bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    """A bare Subject raises at who ends it, and leaves the others untold; a topic logs it and tells them."""

    def play(subject: Subject[Any]) -> tuple[list[object], Exception | None]:
        diary = Diary()
        subject.subscribe(lambda _: None)
        subject.subscribe(diary)
        return diary.notes, _raised(lambda: subject.on_error(ERROR))

    assert play(Subject()) == ([], ERROR)
    with caplog.at_level(logging.ERROR, "rxbus"):
        assert play(any_bus.topic("t")) == ([("error", ERROR)], None)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [ERROR]


def _raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None
