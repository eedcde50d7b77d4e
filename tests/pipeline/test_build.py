"""A build: what a retriggered one does with each step, and what it tells."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rxbus.pipeline import (
    Pipeline,
    StepContext,
    StructureChanged,
    UnknownBuild,
    UnknownStep,
    alias,
    chain,
    either,
    in_parallel,
    junction,
    run,
    shell,
    topics,
)
from rxbus.pipeline._build import Retrigger, Role
from rxbus.pipeline._containers import Container
from rxbus.pipeline._pipeline import structure_of
from rxbus.pipeline._structure import difference
from tests.pipeline.recording import PATIENCE, Book, Sees, bad, ok, plain, until_killed

Make = Callable[..., Pipeline]

NORMAL, RERUN, MOCK = Role.NORMAL, Role.RERUN, Role.MOCK
ALL = {(n, *parent): {"status": "success"} for n in (1, 2, 3) for parent in [(), (1,), (2,), (3,), (2, 2)]}


@pytest.mark.parametrize(
    ("target", "step_id", "how", "role"),
    [
        ((2,), (1,), "run", MOCK),
        ((2,), (2,), "run", RERUN),
        ((2,), (3,), "run", NORMAL),
        ((2,), (1, 2), "run", RERUN),
        ((2,), (1, 2, 2), "parallel", RERUN),
        ((2,), (1, 3), "run", NORMAL),
        ((2, 2), (1,), "run", MOCK),
        ((2, 2), (2,), "run", RERUN),
        ((2, 2), (1, 2), "run", MOCK),
        ((2, 2), (3, 2), "run", NORMAL),
        ((2, 2), (3, 2), "parallel", MOCK),
        ((2, 2), (1, 2), "race", NORMAL),
        ((2, 2), (3, 2), "race", NORMAL),
        ((2, 2), (1, 3, 2), "parallel", NORMAL),
        ((2, 2), (1, 2, 2), "race", RERUN),
        ((2, 2), (9, 2), "parallel", NORMAL),
        ((2, 2, 2), (1, 2, 2), "run", MOCK),
        ((2, 2, 2), (2, 2), "parallel", RERUN),
        ((1,), (2,), "run", NORMAL),
    ],
)
def test_roles(target: Any, step_id: Any, how: str, role: Role) -> None:
    assert Retrigger(1, target, ALL).role(step_id, how == "parallel", how == "race") is role


def ran(*names: str) -> tuple[list[str], list[Callable[[Any, StepContext], Any]]]:
    """Steps that succeed, and the list of those that have run."""
    seen: list[str] = []

    def make(name: str) -> Callable[[Any, StepContext], Any]:
        def step(args: Any, ctx: StepContext) -> Any:
            seen.append(name)
            return {"status": "success", name: ctx.build_number}

        return step

    return seen, [make(name) for name in names]


def flags(book: Book) -> dict[Any, bool]:
    return {one.step_id: one.rerun_for_retrigger for one in book.of(topics.STEP_FINISHED)}


def test_a_sequence(make: Make) -> None:
    seen, (a, b, c) = ran("a", "b", "c")
    pipeline = make(a, b, c)
    pipeline.run()
    before = pipeline.state.step_results(1)
    seen.clear()
    book = Book(pipeline.bus)
    finished = pipeline.retrigger(1, (2,))
    assert seen == ["b", "c"]
    assert (finished.build_number, finished.status) == (2, "success")
    assert [result.get(name) for result, name in zip(finished.outputs.values(), "abc", strict=True)] == [1, 2, 2]
    assert flags(book) == {(1,): True, (2,): True, (3,): False}
    assert book.lines()[:5] == [
        ("begun",),
        ("updated", (1,), "success"),
        ("started", (1,)),
        ("finished", (1,), "success"),
        ("updated", (2,), "running"),
    ]
    assert pipeline.state.step_results(1) == before
    mock = pipeline.state.step_results(2)[(1,)]
    assert mock == {**before[(1,)], "retrigger_mock_for_build_number": 1}
    assert book.finished((1,)).final_result == mock
    again = pipeline.state.step_results(2)[(2,)]
    assert again["first_updated_at"] > before[(2,)]["first_updated_at"]
    assert "retrigger_mock_for_build_number" not in again
    assert pipeline.state.structure(2) == pipeline.state.structure(1)


def test_an_ordinary_build_has_no_flags(make: Make) -> None:
    pipeline = make(ok(), in_parallel(ok()))
    book = Book(pipeline.bus)
    pipeline.run()
    assert set(flags(book).values()) == {False}


def test_in_parallel(make: Make) -> None:
    seen, (a, b, c, d) = ran("a", "b", "c", "d")
    pipeline = make(in_parallel(a, run(b, c), a), d)
    pipeline.run()
    old = pipeline.state.step_results(1)
    seen.clear()
    book = Book(pipeline.bus)
    finished = pipeline.retrigger(1, (2, 2, 1))
    assert seen == ["c", "d"]
    assert flags(book) == {
        (1, 1): True,
        (3, 1): True,
        (1, 2, 1): True,
        (2, 2, 1): True,
        (2, 1): True,
        (1,): True,
        (2,): False,
    }
    container = finished.outputs[(1,)]
    assert (container["a"], container["b"], container["c"]) == (1, 1, 2)
    assert "retrigger_mock_for_build_number" not in container
    assert container["outputs"][(3, 1)] == {**old[(3, 1)], "retrigger_mock_for_build_number": 1}


def test_either(make: Make) -> None:
    seen, (a,) = ran("a")
    pipeline = make(a, either(bad(), a, run(a)))
    pipeline.run()
    seen.clear()
    book = Book(pipeline.bus)
    assert pipeline.retrigger(1, (2, 2)).status == "success"
    assert seen.count("a") in (1, 2)
    assert flags(book)[(1, 2)] is flags(book)[(3, 2)] is False
    assert flags(book)[(2, 2)] is flags(book)[(2,)] is flags(book)[(1,)] is True
    assert "retrigger_mock_for_build_number" not in pipeline.state.step_results(2)[(1, 2)]


def test_a_mocked_containers_children_are_updated_without_started_and_finished(make: Make) -> None:
    pipeline = make(in_parallel(ok(a=1), run(ok(b=1))), ok())
    pipeline.run()
    old = pipeline.state.step_results(1)
    book = Book(pipeline.bus)
    pipeline.retrigger(1, (2,))
    about_first = [line for line in book.lines() if len(line) > 1 and line[1][-1:] == (1,)]
    assert about_first == [
        ("updated", (1, 1), "success"),
        ("updated", (1, 2, 1), "success"),
        ("updated", (2, 1), "success"),
        ("updated", (1,), "success"),
        ("started", (1,)),
        ("finished", (1,), "success"),
    ]
    new = pipeline.state.step_results(2)
    for step_id in [(1,), (1, 1), (2, 1), (1, 2, 1)]:
        assert new[step_id] == {**old[step_id], "retrigger_mock_for_build_number": 1}


def test_descendants_of_the_target_run_again(make: Make) -> None:
    seen, (a, b) = ran("a", "b")
    pipeline = make(ok(), run(a, in_parallel(b)), ok())
    pipeline.run()
    book = Book(pipeline.bus)
    pipeline.retrigger(1, (2,))
    assert seen == ["a", "b"] * 2
    assert flags(book) == {(1,): True, (2,): True, (1, 2): True, (2, 2): True, (1, 2, 2): True, (3,): False}


@pytest.mark.parametrize("container", [run, chain, lambda *steps: alias("x", run(*steps))])
def test_deep_in_sequences(make: Make, container: Callable[..., Any]) -> None:
    seen, (a, b, c, d) = ran("a", "b", "c", "d")
    pipeline = make(container(a, b, c), d)
    book = Book(pipeline.bus)
    pipeline.run()
    target = next(one.step_id for one in book.of(topics.STEP_FINISHED) if "b" in one.final_result)
    seen.clear()
    finished = pipeline.retrigger(1, target)
    assert seen == ["b", "c", "d"]
    result = finished.outputs[(1,)]
    assert (result["a"], result["b"], result["c"]) == (1, 2, 2)


def test_junctions(make: Make) -> None:
    seen, (condition, yes, no) = ran("condition", "yes", "no")
    pipeline = make(junction(condition, yes, no))
    pipeline.run()
    seen.clear()
    pipeline.retrigger(1, (2, 1))
    assert seen == ["yes"]
    pipeline.retrigger(1, (1, 1))
    assert seen == ["yes", "condition", "yes"]


def test_args_are_those_of_the_old_build(make: Make) -> None:
    second, last = Sees(), Sees()
    pipeline = make(ok(a=1, **{"global": {"g": 1}}), run(ok(b=2), second), last)
    pipeline.run()
    pipeline.retrigger(1, (2, 2))
    assert second.args[0] == second.args[1] == {"a": 1, "b": 2, "status": "success", "global": {"g": 1}}
    assert last.args[0] == last.args[1]


def test_a_build_that_goes_on_is_started_with_what_the_old_one_was(make: Make) -> None:
    first, last = Sees(), Sees()
    pipeline = make(first, last)
    pipeline.run({"branch": "main"})
    for build in (1, 2):
        pipeline.retrigger(build, (2,))
    pipeline.retrigger(3, (1,))
    assert [args["branch"] for args in first.args + last.args] == ["main"] * 6


def test_a_failed_step_is_repeated_until_it_succeeds(make: Make) -> None:
    results = iter(["failure", "failure", "success"])
    seen, (a, c) = ran("a", "c")
    pipeline = make(a, lambda args, ctx: {"status": next(results)}, c)
    assert pipeline.run().status == "failure"
    assert pipeline.retrigger(1, (2,)).status == "failure"
    finished = pipeline.retrigger(2, (2,))
    assert (finished.build_number, finished.status) == (3, "success")
    assert seen == ["a", "c"]
    assert finished.outputs[(1,)]["retrigger_mock_for_build_number"] == 2
    first = [pipeline.state.step_results(n)[(1,)]["first_updated_at"] for n in (1, 2, 3)]
    assert len(set(first)) == 1
    with pytest.raises(UnknownStep):
        pipeline.retrigger(1, (3,))


def test_unknown_builds_and_steps(make: Make) -> None:
    pipeline = make(ok())
    pipeline.run()
    with pytest.raises(UnknownBuild) as build:
        pipeline.retrigger(7, (1,))
    assert (isinstance(build.value, LookupError), build.value.build_number) == (True, 7)
    with pytest.raises(UnknownStep) as step:
        pipeline.retrigger(1, (1, 1))
    assert (isinstance(step.value, LookupError), step.value.step_id) == (True, (1, 1))
    assert pipeline.state.build_numbers() == [1]


def test_a_structure_that_has_changed(make: Make, tmp_path: Path) -> None:
    def compile(args: Any, ctx: StepContext) -> Any:
        return {"status": "success"}

    def test(args: Any, ctx: StepContext) -> Any:
        return {"status": "success"}

    old = make(compile, run(test), home=tmp_path)
    old.run()
    old.shutdown()
    for steps in [(compile, in_parallel(test)), (compile, run(compile)), (compile, run(test), test), (compile,)]:
        with pytest.raises(StructureChanged) as changed:
            make(*steps, home=tmp_path).retrigger(1, (1,))
        assert changed.value.build_number == 1
    assert make(compile, run(test), home=tmp_path).retrigger(1, (1, 2)).status == "success"


def test_a_retriggered_build_can_be_killed(make: Make, spawn: Any) -> None:
    first = threading.Event()
    pipeline = make(ok(), until_killed(first))
    build = pipeline.start()
    assert first.wait(PATIENCE)
    pipeline.kill(1, (2,))
    build.result(PATIENCE)
    first.clear()
    again = spawn(pipeline.retrigger, 1, (2,))
    assert first.wait(PATIENCE)
    pipeline.kill(2, (2,))
    assert plain(again.result(PATIENCE)) == {(1,): "success", (2,): "killed"}


def test_a_command_that_has_been_mended_can_be_retriggered(make: Make, tmp_path: Path) -> None:
    with Pipeline([ok(), alias("deploy", shell("exit 3"))], home=tmp_path) as old:
        assert old.run().status == "failure"
    with Pipeline([ok(), alias("deploy", shell("exit 0"))], home=tmp_path) as new:
        assert new.retrigger(1, (2,)).status == "success"
        assert [step.kind for step in new.state.structure(2)[1].children] == ["shell"]


@pytest.mark.parametrize(
    ("steps", "change"),
    [
        ([alias("a", ok()), ok()], "it was 'a', 1 (alias), and is 'a', 1 (run)"),
        ([run(ok())], "step 2, 'run', is new"),
        ([run(ok()), run(ok(), ok()), ok()], "step 2-2, 'step', is gone"),
    ],
)
def test_where_two_structures_differ_first(steps: list[Any], change: str) -> None:
    before = structure_of(Container("pipeline", steps), ())
    now = structure_of(
        Container("pipeline", [Container("run", [ok()], "a") if len(steps) == 2 else run(ok()), run(ok())]), ()
    )
    assert difference(before, now) == change
    assert difference(now, now) is None
