"""Cells: code that runs again does not double its observers."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops

from rxbus import Event, EventBus, RxBusError
from tests.test_trace import Book


def test_running_it_again_replaces_its_observers(bus: EventBus) -> None:
    seen: list[tuple[int, int]] = []
    completed: list[int] = []
    for run in range(3):
        with bus.cell("prices"):
            bus.on("a")(lambda event, run=run: seen.append((run, event.payload)))
            bus.subscribe("a").subscribe(on_completed=lambda run=run: completed.append(run))
        bus.publish("a", run)
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert completed == [0, 1]
    assert bus.statistics().observers == 2


def test_what_others_attached_stays(bus: EventBus) -> None:
    bus.on("a")(lambda event: None)
    with bus.cell("one"):
        bus.on("a")(lambda event: None)
    with bus.cell("other"):
        bus.on("a")(lambda event: None)
    with bus.cell("one"):
        pass
    bus.on("a")(lambda event: None)
    assert bus.statistics().observers == 3


def test_the_place_in_the_code_is_its_name(bus: EventBus) -> None:
    for _ in range(3):
        with bus.cell():
            bus.on("a")(lambda event: None)
    with bus.cell():
        bus.on("a")(lambda event: None)
    assert bus.statistics().observers == 2


def test_nested_cells_are_two(bus: EventBus) -> None:
    for _ in range(2):
        with bus.cell("outer") as outer:
            with bus.cell("inner") as inner:
                bus.on("a")(lambda event: None)
            bus.on("a")(lambda event: None)
        assert (repr(outer), repr(inner)) == ("<Cell 'outer', attached: 1>", "<Cell 'inner', attached: 1>")
    with bus.cell("outer"):
        pass
    assert bus.statistics().observers == 1


def test_cells_are_each_bus_s_own(bus: EventBus) -> None:
    with EventBus() as other, bus.cell("x"):
        other.on("a")(lambda event: None)
        with bus.cell("x"):
            pass
        assert other.statistics().observers == 1


def test_what_handlers_attach_belongs_to_it(bus: EventBus) -> None:
    """As inner streams do: completing the outer one would not end them."""
    for _ in range(3):
        with bus.cell("flat"):
            bus.subscribe("a").pipe(ops.flat_map(lambda _: bus.subscribe("b"))).subscribe()
        bus.publish("a")
        bus.publish("a")
    assert bus.topic_statistics()["b"].observers == 2


def test_who_has_left_is_forgotten(bus: EventBus) -> None:
    with bus.cell("x") as cell:
        for _ in range(100):
            bus.subscribe("a").subscribe().dispose()
        bus.subscribe("a").pipe(ops.take(1)).subscribe()
        bus.trace(Book()).dispose()
    bus.publish("a")
    assert repr(cell) == "<Cell 'x', attached: 0>"


def test_merged_streams_and_tracers(bus: EventBus) -> None:
    book = Book()
    for _ in range(2):
        with bus.cell("x"):
            rx.merge(bus.subscribe("a"), bus.subscribe("b")).subscribe()
            bus.trace(book)
    bus.publish("a")
    assert bus.statistics().observers == 1
    assert len(book.events) == 1


class Stopped(Book):
    """A tracer that is equal to others, has no hash, and a `stop` that means something else."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stopped)

    def stop(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.rxbus_allow("failures")
@pytest.mark.parametrize("error", [None, OSError("no disk")])
def test_tracers_are_detached_whatever_they_are(bus: EventBus, error: OSError | None) -> None:
    tracers = [Stopped(error) for _ in range(4)]
    for pair in (tracers[:2], tracers[2:]):
        with bus.cell("tap"):
            for tracer in pair:
                bus.trace(tracer)
    bus.publish("a", 1)
    assert [len(tracer.events) for tracer in tracers] == [0, 0, 1, 1]


def test_an_interrupt_where_it_ends_the_earlier_ones(bus: EventBus) -> None:
    tracer = Stopped(KeyboardInterrupt())
    with bus.cell("tap"):
        bus.trace(tracer)
        bus.on("a")(lambda event: None)
    with pytest.raises(KeyboardInterrupt), bus.cell("tap"):
        pass
    tracer.error = None
    with bus.cell("tap"):
        pass
    assert bus.statistics().observers == 0


def test_a_block_that_fails_ends_when_it_runs_again(bus: EventBus) -> None:
    with suppress(ZeroDivisionError), bus.cell("x"):
        bus.on("a")(lambda event: None)
        raise ZeroDivisionError
    bus.on("a")(lambda event: None)  # outside of it
    assert bus.statistics().observers == 2
    with bus.cell("x"):
        assert bus.statistics().observers == 1


def test_it_may_run_again_in_a_handler_of_its_own(bus: EventBus) -> None:
    runs: list[Any] = []

    def cell() -> None:
        with bus.cell("x"):
            bus.on("a")(again)

    def again(event: Event[int]) -> None:
        runs.append(event.payload)
        if event.payload < 3:
            cell()

    cell()
    for n in range(5):
        bus.publish("a", n)
    assert runs == [0, 1, 2, 3, 4]


class Shell:
    """IPython, as far as a cell looks at it."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        self.compile: Any = None

    def get_parent(self) -> dict[str, Any]:
        return {"metadata": self.metadata}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell({})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    return shell


def test_in_a_notebook_the_cell_s_id_is_its_name(bus: EventBus, shell: Shell) -> None:
    for cell_id in "abab":
        shell.metadata["cellId"] = cell_id
        with bus.cell() as cell:
            bus.on("a")(lambda event: None)
        assert cell.name == cell_id
    assert bus.statistics().observers == 2


@pytest.mark.parametrize("parent", [None, {}, {"metadata": {}}])
def test_where_nobody_tells_which_cell_runs_it_is_the_code(
    bus: EventBus, shell: Shell, parent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "get_parent", lambda: parent)
    with bus.cell() as cell:
        assert cell.name.startswith(__file__)


@pytest.mark.parametrize("told", [{}, {__file__: None}, {__file__: ("Cell", "In[5]")}], ids=str)
def test_observers_are_called_by_the_cell_in_which_they_are_attached(bus: EventBus, shell: Shell, told: Any) -> None:
    shell.compile = SimpleNamespace(format_code_name=told.get) if told else None
    bus.subscribe("a").subscribe(print)
    (name,) = bus.topics["a"].observer_names
    assert re.fullmatch(r"print \(In\[5\]:\d+\)" if told.get(__file__) else r"print \(test_cells\.py:\d+\)", name)


@pytest.mark.parametrize("name", ["", 3])
def test_bad_names(bus: EventBus, name: Any) -> None:
    with pytest.raises(RxBusError):
        bus.cell(name)
