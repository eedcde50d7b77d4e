"""Containers: numbers, order of events, arguments, results, and what each does of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rxbus import InvalidArgument
from rxbus.pipeline import (
    Pipeline,
    StepContext,
    alias,
    chain,
    either,
    flatten_outputs,
    in_cwd,
    in_parallel,
    junction,
    run,
    shell,
    topics,
    with_workspace,
)
from tests.pipeline.recording import PATIENCE, Book, Sees, Step, bad, ok, plain, until_killed

Make = Callable[..., Pipeline]


# -- Sequences


def test_a_sequence_in_order(make: Make) -> None:
    pipeline = make(ok(), run(ok(), ok()), ok())
    book = Book(pipeline.bus)
    assert pipeline.run().status == "success"
    assert book.lines() == [
        ("begun",),
        ("updated", (1,), "running"), ("started", (1,)), ("updated", (1,), "success"), ("finished", (1,), "success"),
        ("updated", (2,), "running"), ("started", (2,)),
        ("updated", (1, 2), "running"), ("started", (1, 2)),
        ("updated", (1, 2), "success"), ("updated", (2,), "success"), ("finished", (1, 2), "success"),
        ("updated", (2, 2), "running"), ("updated", (2,), "running"), ("started", (2, 2)),
        ("updated", (2, 2), "success"), ("updated", (2,), "success"), ("finished", (2, 2), "success"),
        ("updated", (2,), "success"), ("finished", (2,), "success"),
        ("updated", (3,), "running"), ("started", (3,)), ("updated", (3,), "success"), ("finished", (3,), "success"),
        ("ended", "success"),
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["failure", "killed", "unknown", "waiting", "running", "dead"])
def test_a_sequence_stops_at_the_first_that_does_not_succeed(make: Make, status: str) -> None:
    never = Sees()
    pipeline = make(ok(), run(ok(status=status), never), never)
    finished = pipeline.run()
    assert never.args == []
    expected = "killed" if status == "killed" else "failure"
    assert (finished.status, plain(finished)) == (expected, {(1,): "success", (2,): expected})
    assert list(finished.outputs[(2,)]["outputs"]) == [(1, 2)]


def test_none_is_dropped_before_numbering(make: Make) -> None:
    pipeline = make(None, ok(), None, run(None, ok(), None, ok()), in_parallel(None, ok()), either(None, ok()))
    book = Book(pipeline.bus)
    pipeline.run()
    ids = [one.step_id for one in book.of(topics.STEP_FINISHED)]
    assert sorted(ids) == sorted([(1,), (2,), (1, 2), (2, 2), (3,), (1, 3), (4,), (1, 4)])


@pytest.mark.parametrize("container", [run, in_parallel, with_workspace, chain, lambda: in_cwd("/")])
def test_an_empty_container_is_a_success(make: Make, container: Callable[..., Step]) -> None:
    finished = make(container(), ok()).run()
    assert finished.status == "success"
    assert finished.outputs[(1,)] == {"status": "success", "outputs": {}}


def test_an_empty_either_is_a_failure(make: Make) -> None:
    finished = make(either()).run()
    assert finished.outputs == {(1,): {"status": "failure"}}


@pytest.mark.parametrize("container", [run, in_parallel, either, chain, lambda step: alias("x", step)])
def test_what_cannot_be_called_is_no_step(container: Callable[..., Step]) -> None:
    with pytest.raises(InvalidArgument):
        container("a step")


# -- Arguments


def test_args_are_the_parents_overlaid_by_the_result_before(make: Make) -> None:
    first, second, third = Sees(a=1, x=1), Sees(b=2), Sees()
    make(first, second, third).run({"p": 0, "x": 0})
    assert first.args == [{"p": 0, "x": 0}]
    assert second.args == [{"p": 0, "x": 1, "a": 1, "status": "success"}]
    assert third.args == [{"p": 0, "x": 0, "b": 2, "status": "success"}]


def test_args_in_containers(make: Make) -> None:
    child, second, side, racer = Sees(c=1), Sees(), Sees(), Sees()
    make(ok(a=1), run(child, second), in_parallel(side), either(racer)).run({"p": 0})
    assert child.args == [{"p": 0, "a": 1, "status": "success"}]
    assert second.args == [{"p": 0, "a": 1, "c": 1, "status": "success"}]
    assert side.args == [{"p": 0, "c": 1, "status": "success"}]
    assert racer.args == [{"p": 0, "status": "success"}]


def test_global_goes_on_to_all_later_steps(make: Make) -> None:
    steps = [Sees(**{"global": {"x": 1}}), Sees(), Sees(**{"global": {"y": 2}}), Sees()]
    deep = Sees(**{"global": {"deep": 3}})
    side, last, own = Sees(), Sees(), Sees()
    make(*steps, run(own, in_parallel(deep, side)), last).run({"global": {"given": 0}})
    expected = [{}, {"x": 1}, {"x": 1}, {"x": 1, "y": 2}]
    assert [step.args[0]["global"] for step in steps] == [{"given": 0, **one} for one in expected]
    assert own.args[0]["global"] == side.args[0]["global"] == {"given": 0, "x": 1, "y": 2}
    assert last.args[0]["global"] == {"given": 0, "x": 1, "y": 2, "deep": 3}


@pytest.mark.parametrize("value", [3, "text", [1], None])
def test_a_global_that_is_no_dict_goes_to_the_next_only(make: Make, value: object) -> None:
    second, third = Sees(), Sees()
    assert make(ok(**{"global": value}), second, third).run({"global": value}).status == "success"
    assert second.args[0]["global"] == value
    assert third.args[0]["global"] == value  # the build's own


def test_args_are_nobody_elses_to_change(make: Make) -> None:
    def greedy(args: Any, ctx: StepContext) -> Any:
        args.clear()
        args["mine"] = 1
        return {"status": "success"}

    seen, side = Sees(), Sees()
    given = {"a": 1}
    make(greedy, in_parallel(greedy, greedy), run(greedy, seen), side).run(given)
    assert given == {"a": 1}
    assert seen.args == side.args == [{"a": 1, "status": "success"}]


# -- Results


def test_results_merge_in_order_of_step_id(make: Make) -> None:
    gate = threading.Event()

    def late(args: Any, ctx: StepContext) -> Any:
        assert gate.wait(PATIENCE)
        return {"status": "success", "a": 1, "map": {"x": 1, "z": 1}, "list": [1], "first_updated_at": "no"}

    def early(args: Any, ctx: StepContext) -> Any:
        gate.set()
        return {"status": "success", "a": 2, "map": {"y": 2, "z": 2}, "list": [2]}

    merged = {"status": "success", "a": 2, "map": {"x": 1, "y": 2, "z": 2}, "list": [1, 2]}
    finished = make(in_parallel(late, early), run(late, early)).run()
    for result in finished.outputs.values():
        outputs = result.pop("outputs")
        assert result == merged
        assert [one["a"] for one in outputs.values()] == [1, 2]


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["success", "success"], "success"),
        (["success", "killed"], "killed"),
        (["killed", "failure"], "failure"),
        (["success", "failure"], "failure"),
    ],
)
def test_all_must_succeed(make: Make, statuses: list[str], status: str) -> None:
    finished = make(in_parallel(*(ok(status=one) for one in statuses))).run()
    assert finished.status == finished.outputs[(1,)]["status"] == status
    assert [one["status"] for one in finished.outputs[(1,)]["outputs"].values()] == statuses


# -- In parallel


def test_in_parallel_they_run_at_the_same_time(make: Make) -> None:
    barrier = threading.Barrier(3)

    def step(args: Any, ctx: StepContext) -> Any:
        barrier.wait(PATIENCE)
        return {"status": "failure" if ctx.step_id == (2, 1) else "success"}

    pipeline = make(in_parallel(step, step, step))
    book = Book(pipeline.bus)
    assert pipeline.run().status == "failure"
    order = book.order()
    assert order[:2] == [("begun",), ("started", (1,))]
    assert order[-2:] == [("finished", (1,)), ("ended", "failure")]
    children = [(n, 1) for n in (1, 2, 3)]
    assert sorted(order[2:5]) == [("started", child) for child in children]
    assert sorted(order[5:8]) == [("finished", child) for child in children]


def test_unified_updates(make: Make) -> None:
    going_on, told = threading.Event(), threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(status="waiting")
        assert going_on.wait(PATIENCE)
        ctx.update(status="running")
        ctx.update(status="killed")
        return {"status": "success"}

    def failing(args: Any, ctx: StepContext) -> Any:
        assert told.wait(PATIENCE)
        going_on.set()
        return {"status": "failure"}

    def look(event: Any) -> None:
        if event.payload.step_id == (1, 1) and event.payload.step_result["status"] == "waiting":
            told.set()

    pipeline = make(in_parallel(step, failing))
    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(look)
    book = Book(pipeline.bus)
    assert pipeline.start().result(PATIENCE).status == "failure"
    own = [update["status"] for update in book.updates((1,))]
    assert own[0] == "running"
    assert own[-2:] == ["failure", "failure"]
    assert all(one != other for one, other in pairwise(own[:-1]))


def test_unified_updates_of_all_levels(make: Make) -> None:
    answered = threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(status="waiting")
        return {"status": "success" if answered.wait(PATIENCE) else "failure"}

    pipeline = make(run(in_parallel(either(step))))
    waiting = set()

    def look(event: Any) -> None:
        if event.payload.step_result["status"] == "waiting":
            waiting.add(event.payload.step_id)
            assert event.payload.step_result["has_been_waiting"] is True
        if len(waiting) == 4:
            answered.set()

    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(look)
    assert pipeline.start().result(PATIENCE).status == "success"
    assert (1,) in waiting


def test_a_container_is_never_left_with_what_its_children_were_before(make: Make) -> None:
    waiting, told = threading.Barrier(8), threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        waiting.wait(PATIENCE)
        ctx.update(status="waiting")
        return {"status": "success" if told.wait(PATIENCE) else "failure"}

    def look(event: Any) -> None:
        if event.payload.step_id == (1,) and event.payload.step_result["status"] == "waiting":
            told.set()

    pipeline = make(in_parallel(*[step] * 8))
    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(look)
    assert pipeline.start().result(PATIENCE).status == "success"


def test_children_see_the_context_variables(make: Make) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen = []

    def step(args: Any, ctx: StepContext) -> Any:
        seen.append(variable.get())
        return {"status": "success"}

    token = variable.set("mine")
    try:
        make(step, in_parallel(step, run(step)), either(step)).run()
    finally:
        variable.reset(token)
    assert seen == ["mine"] * 4


def test_no_thread_for_another(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("rxbus-step-2-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    pipeline = make(in_parallel(ok(), ok(), ok()))
    racing = make(either(until_killed(), ok()))
    books = Book(pipeline.bus), Book(racing.bus)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for one, book in zip((pipeline, racing), books, strict=True):
        finished = one.start().result(PATIENCE)
        assert finished.status == "failure"
        assert "can't start new thread" in finished.outputs[(1,)]["out"]
        assert book.order()[-1] == ("ended", "failure")
        assert sorted(book.order()[-3:-1]) == [("finished", (1,)), ("finished", (1, 1))]


# -- Either


def test_eithers_first_success_is_its_result_and_the_others_are_killed(make: Make) -> None:
    started, go_on = threading.Barrier(3), threading.Event()

    def loser(args: Any, ctx: StepContext) -> Any:
        started.wait(PATIENCE)
        killed = ctx.wait_killed(PATIENCE)
        assert go_on.wait(PATIENCE)
        return {"status": "killed" if killed else "failure", "a": 2}

    def winner(args: Any, ctx: StepContext) -> Any:
        started.wait(PATIENCE)
        return {"status": "success", "a": 1, "outputs": {}}

    def after(args: Any, ctx: StepContext) -> Any:
        go_on.set()
        return {"status": "success"}

    pipeline = make(either(loser, winner, run(loser)), after)
    book = Book(pipeline.bus)
    finished = pipeline.start().result(PATIENCE)
    assert finished.status == "success"
    assert finished.outputs[(1,)] == {"status": "success", "a": 1}
    order = book.order()
    assert order.index(("finished", (1,))) < order.index(("started", (2,)))
    assert order[-1] == ("ended", "success")
    assert {("finished", (1, 1)), ("finished", (3, 1)), ("finished", (1, 3, 1))} < set(order)
    for step_id in [(1, 1), (3, 1), (1, 3, 1)]:
        result = book.finished(step_id).final_result
        assert (result["status"], result["received_kill"]) == ("killed", True)
    assert "received_kill" not in book.finished((2, 1)).final_result
    assert pipeline.state.step_results(1)[(1, 1)]["status"] == "killed"


def test_a_loser_that_begins_late_is_before_the_end_of_the_build(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    real = threading.Thread.run

    def late(thread: threading.Thread) -> None:
        if thread.name == "rxbus-step-2-1":
            assert over.wait(PATIENCE)
        real(thread)

    pipeline = make(either(ok(), until_killed()))
    book = Book(pipeline.bus)
    pipeline.bus.subscribe(topics.STEP_FINISHED).subscribe(
        lambda event: over.set() if event.payload.step_id == (1,) else None
    )
    monkeypatch.setattr(threading.Thread, "run", late)
    assert pipeline.start().result(PATIENCE).status == "success"
    assert book.order()[-4:] == [
        ("finished", (1,)),
        ("started", (2, 1)),
        ("finished", (2, 1)),
        ("ended", "success"),
    ]
    assert book.finished((2, 1)).final_result["status"] == "killed"


def test_either_where_all_fail(make: Make) -> None:
    finished = make(either(bad(a=1), bad(out="x"), ok(status="killed"))).run()
    assert finished.outputs == {(1,): {"status": "failure"}}


def test_either_killed(make: Make) -> None:
    started = threading.Event()
    pipeline = make(either(until_killed(started), bad()))
    build = pipeline.start()
    assert started.wait(PATIENCE)
    pipeline.kill(1, (1,))
    assert build.result(PATIENCE).outputs == {(1,): {"status": "killed", "received_kill": True}}


def test_either_killed_whose_child_succeeds_nevertheless(make: Make) -> None:
    started = threading.Event()

    def tidy(args: Any, ctx: StepContext) -> Any:
        started.set()
        assert ctx.wait_killed(PATIENCE)
        return {"status": "success"}

    pipeline = make(either(tidy))
    build = pipeline.start()
    assert started.wait(PATIENCE)
    pipeline.kill(1, (1,))
    assert build.result(PATIENCE).status == "killed"


def test_either_whose_child_is_killed_goes_on(make: Make) -> None:
    started, gone = threading.Event(), threading.Event()

    def patient(args: Any, ctx: StepContext) -> Any:
        return {"status": "success" if gone.wait(PATIENCE) and not ctx.killed else "failure"}

    pipeline = make(either(until_killed(started), patient))
    pipeline.bus.subscribe(topics.STEP_FINISHED).subscribe(lambda event: gone.set())
    build = pipeline.start()
    assert started.wait(PATIENCE)
    pipeline.kill(1, (1, 1))
    assert build.result(PATIENCE).outputs == {(1,): {"status": "success"}}


# -- Junction


@pytest.mark.parametrize(("condition", "branch"), [(ok(c=1), 2), (bad(c=1), 3), (ok(status="killed"), 3)])
def test_junction(make: Make, condition: Step, branch: int) -> None:
    pipeline = make(junction(condition, ok(b=2, out="yes"), ok(b=3, out="no")))
    book = Book(pipeline.bus)
    finished = pipeline.run()
    out = "yes" if branch == 2 else "no"
    result = {"status": "success", "b": branch, "out": out}
    assert finished.outputs == {(1,): {**result, "outputs": {(branch, 1): result}}}
    assert book.order() == [
        ("begun",),
        ("started", (1,)),
        ("started", (1, 1)), ("finished", (1, 1)),
        ("started", (branch, 1)), ("finished", (branch, 1)),
        ("finished", (1,)),
        ("ended", "success"),
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["failure", "killed", "unknown", "dead"])
def test_the_status_of_a_junction_is_its_branchs(make: Make, status: str) -> None:
    finished = make(junction(ok(), ok(status=status), ok())).run()
    assert finished.outputs[(1,)]["status"] == status


def test_a_junction_without_the_branch_is_a_success(make: Make) -> None:
    finished = make(junction(ok(), None, bad()), junction(bad(), bad(), None)).run()
    assert finished.outputs == {(n,): {"status": "success", "outputs": {}} for n in (1, 2)}


def test_the_args_of_a_junctions_steps(make: Make) -> None:
    condition, branch = Sees(c=1), Sees()
    make(junction(condition, branch, None)).run({"a": 1})
    assert condition.args == branch.args == [{"a": 1}]


# -- Directories


def test_the_roots_cwd_is_the_processs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sees = Sees()
    pipeline = make(sees, run(sees))
    monkeypatch.chdir(tmp_path)
    pipeline.run()
    assert sees.cwds == [Path.cwd()] * 2 == [tmp_path] * 2


def test_in_cwd(make: Make, tmp_path: Path) -> None:
    sees = Sees()
    pipeline = make(in_cwd(tmp_path, sees, in_cwd("sub", in_parallel(sees), in_cwd("/", sees)), sees), sees)
    pipeline.run()
    assert sees.cwds == [tmp_path, tmp_path / "sub", Path("/"), tmp_path, Path.cwd()]


def test_in_cwd_for_commands(make: Make, tmp_path: Path) -> None:
    finished = make(in_cwd(tmp_path, shell("pwd"), in_cwd("missing", shell("pwd")))).run()
    first, second = finished.outputs[(1,)]["outputs"].values()
    assert first["out"].strip() == str(tmp_path)
    assert second["status"] == "failure"


@pytest.mark.parametrize("end", ["success", "failure", "raises", "gone"])
@pytest.mark.parametrize("at_home", [True, False])
def test_with_workspace(make: Make, tmp_path: Path, end: str, at_home: bool) -> None:
    workspaces = []

    def step(args: Any, ctx: StepContext) -> Any:
        workspaces.append(ctx.cwd)
        (ctx.cwd / "dir").mkdir()
        (ctx.cwd / "dir" / "file").write_text("x")
        if end == "raises":
            raise ValueError
        return {"status": "failure" if end == "failure" else "success"}

    def remove(args: Any, ctx: StepContext) -> Any:
        if end == "gone":
            (ctx.cwd / "dir" / "file").unlink()
            (ctx.cwd / "dir").rmdir()
            ctx.cwd.rmdir()
        return {"status": "success"}

    home = tmp_path / "home" if at_home else None
    pipeline = make(with_workspace(step, remove), home=home)
    finished = pipeline.run()
    assert finished.status == ("success" if end in ("success", "gone") else "failure")
    [workspace] = workspaces
    assert not workspace.exists()
    assert workspace.is_absolute()
    if home is not None:
        assert workspace.parent == home
        assert pipeline.state.build_numbers() == [1]


def test_each_workspace_is_new(make: Make, tmp_path: Path) -> None:
    sees = Sees()
    pipeline = make(in_parallel(with_workspace(sees), with_workspace(sees, with_workspace(sees))), home=tmp_path)
    pipeline.run()
    pipeline.run()
    assert len(set(sees.cwds)) == len(sees.cwds) == 6


def test_a_workspace_under_a_relative_home(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sees = Sees()
    pipeline = make(with_workspace(sees), home="builds")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pipeline.run().status == "success"
    assert sees.cwds[0].parent == tmp_path / "builds"


def test_a_workspace_that_cannot_be_made(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr("rxbus.pipeline._containers.tempfile.mkdtemp", refuse)
    finished = make(with_workspace(ok())).run()
    assert "no space left" in finished.outputs[(1,)]["out"]


# -- Alias and chain


def test_alias(make: Make) -> None:
    pipeline = make(alias("deploy", ok(a=1)), alias("none", None))  # type: ignore[arg-type]
    finished = pipeline.run()
    child = {"status": "success", "a": 1}
    assert finished.outputs[(1,)] == {**child, "outputs": {(1, 1): child}}
    assert finished.outputs[(2,)] == {"status": "success", "outputs": {}}
    first, _ = pipeline.state.structure(1)
    assert (first.name, first.kind, first.children[0].step_id) == ("deploy", "alias", (1, 1))


def test_chain(make: Make) -> None:
    first, second, third = Sees(a=1, out="one"), Sees(b=2, out="two"), Sees()
    finished = make(chain(first, None, second, lambda args, ctx: None, third)).run({"p": 0})
    result = finished.outputs[(1,)]
    assert {key: value for key, value in result.items() if key != "outputs"} == {
        "status": "success",
        "a": 1,
        "b": 2,
        "out": "one\ntwo",
    }
    assert list(result["outputs"]) == [(n, 1) for n in (1, 2, 3, 4)]
    assert first.args == [{"p": 0}]
    assert second.args == [{"p": 0, "a": 1, "out": "one", "status": "success"}]
    assert third.args == [{"p": 0, "b": 2, "out": "two", "status": "success"}]  # the one between has added nothing


def test_a_chain_that_fails(make: Make) -> None:
    def broken(args: Any, ctx: StepContext) -> Any:
        ctx.update(out="tried")
        raise ValueError("broken")

    never = Sees()
    pipeline = make(chain(ok(out="one"), broken, never))
    book = Book(pipeline.bus)
    result = pipeline.run().outputs[(1,)]
    assert result["status"] == "failure"
    assert result["out"].startswith("one\ntried\nTraceback")
    assert never.args == []
    assert book.order()[1:-1] == [
        ("started", (1,)),
        ("started", (1, 1)), ("finished", (1, 1)),
        ("started", (2, 1)), ("finished", (2, 1)),
        ("finished", (1,)),
    ]  # fmt: skip


def test_a_chain_of_containers_and_globals(make: Make) -> None:
    last = Sees()
    finished = make(chain(ok(**{"global": {"g": 1}}), run(ok(x=1)), shell("echo hi"), last)).run()
    assert finished.status == "success"
    assert finished.outputs[(1,)]["out"] == "hi\n"
    assert last.args[0]["global"] == {"g": 1}
    assert (last.args[0]["exit"], "x" in last.args[0]) == (0, False)


def test_a_part_that_returns_what_is_no_result(make: Make) -> None:
    finished = make(chain(lambda args, ctx: 3)).run()
    assert finished.status == "failure"


# -- All of them


def test_a_container_on_its_own_is_shared_by_builds(make: Make) -> None:
    step = in_parallel(run(ok(), ok()), either(ok()), chain(ok()))
    pipeline = make(step, step)
    builds = [pipeline.start() for _ in range(4)]
    for build in builds:
        flat = flatten_outputs(build.result(PATIENCE).outputs)
        assert {result["status"] for result in flat.values()} == {"success"}
        assert len(flat) == 14


def test_the_order_holds_on_every_level(make: Make) -> None:
    tree = in_parallel(run(ok(), alias("a", chain(ok(), bad()))), either(bad(), run(ok())), junction(bad(), ok(), ok()))
    pipeline = make(tree)
    book = Book(pipeline.bus)
    pipeline.run()
    seen: dict[Any, list[str]] = {}
    for what, step_id, *_ in [line for line in book.lines() if len(line) > 1 and line[0] != "ended"]:
        seen.setdefault(step_id, []).append(what)
        if what == "started" and len(step_id) > 1:
            assert "started" in seen[step_id[1:]]
            assert "finished" not in seen[step_id[1:]] or step_id[1:] == (2, 1)
    for step_id, story in seen.items():
        start = story.index("started")
        assert (story[0], story[-2:]) == ("updated", ["updated", "finished"])
        between = book.updates(step_id)[1:start]  # `either` kills what a sibling's success may find before its start
        assert all(update.get("received_kill") for update in between)
        assert (story.count("started"), story.count("finished")) == (1, 1)


def test_what_a_step_does_to_its_arguments_is_seen_by_no_other(make: Make) -> None:
    seen = Sees()
    given: dict[str, Any] = {"list": [1], "global": {"kept": {"n": 1}}}

    def greedy(args: Any, ctx: StepContext) -> Any:
        args["list"].append(2)
        args["global"]["kept"]["n"] = 2
        return {"status": "success", "files": ["a"]}

    def later(args: Any, ctx: StepContext) -> Any:
        args["files"].append("b")
        return {"status": "success"}

    pipeline = make(greedy, later, in_parallel(greedy, seen), seen)
    finished = pipeline.run(given)
    assert given == {"list": [1], "global": {"kept": {"n": 1}}}
    assert [args["list"] for args in seen.args] == [[1], [1]]
    assert [args["global"] for args in seen.args] == [{"kept": {"n": 1}}] * 2
    assert finished.outputs[(1,)]["files"] == pipeline.state.step_results(1)[(1,)]["files"] == ["a"]


def test_arguments_that_contain_themselves_are_refused(make: Make) -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(InvalidArgument, match="contain themselves"):
        make(ok()).start({"ring": ring})


def test_what_is_no_step_is_refused_where_it_is_defined() -> None:
    with pytest.raises(InvalidArgument):
        junction(None, ok(), ok())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        alias(5, ok())  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs a user who may become another")
def test_a_workspace_takes_nothing_outside_with_it(tmp_path: Path) -> None:
    """Not even the mode of a directory that is linked to; root is never refused, so another user has to try."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o777)
    program = f"""
import os
from pathlib import Path
from rxbus.pipeline._files import remove_tree
os.setuid(65534)
outside = Path({str(outside)!r}) / "mine"
outside.mkdir()
outside.chmod(0o755)
workspace = Path({str(outside)!r}) / "workspace"
(workspace / "cache").mkdir(parents=True)
(workspace / "cache" / "link").symlink_to(outside)
(workspace / "cache").chmod(0o555)
remove_tree(workspace)
print(workspace.exists(), oct(outside.stat().st_mode & 0o777))
"""
    outside.chmod(0o777)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.stdout == "False 0o755\n", done.stderr
