"""The example: a project is built, tested and published, end to end."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reactivex import operators as ops

from rxbus import only_payload
from rxbus.pipeline import Pipeline, PipelineFinished, examples, failed_steps, flatten_outputs, post_trigger, topics

LINT, TEST, WHEEL = (1, 1, 3, 1), (2, 1, 3, 1), (2, 3, 1)
WORKSPACE, AGREEMENT, PUBLISH = (1,), (2,), (3,)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it needs a POSIX shell")


class Book:
    """What happens, in order; answers triggers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.started: list[tuple[int, Any]] = []
        self.finished: list[tuple[int, Any]] = []
        self.ended: list[PipelineFinished] = []
        self.triggers: list[str] = []
        bus = pipeline.bus
        bus.subscribe(topics.STEP_STARTED).pipe(only_payload, ops.map(_who)).subscribe(self.started.append)
        bus.subscribe(topics.STEP_FINISHED).pipe(only_payload, ops.map(_who)).subscribe(self.finished.append)
        bus.subscribe(topics.PIPELINE_FINISHED).pipe(only_payload).subscribe(self.ended.append)
        bus.subscribe(topics.STEP_RESULT_UPDATED).pipe(
            only_payload,
            ops.map(_trigger_id),
            ops.filter(lambda trigger_id: trigger_id is not None and trigger_id not in self.triggers),
            ops.do_action(self.triggers.append),
        ).subscribe(lambda trigger_id: post_trigger(bus, trigger_id, {"by": "a test"}))


def _who(step: topics.StepStarted | topics.StepFinished) -> tuple[int, Any]:
    return step.build_number, step.step_id


def _trigger_id(updated: topics.StepResultUpdated) -> Any:
    return updated.step_result.get("trigger_id")


def outs(finished: PipelineFinished) -> str:
    return "\n".join(f"{step_id}: {result.get('out')}" for step_id, result in flatten_outputs(finished.outputs).items())


@pytest.mark.timeout(300)  # it makes a virtual environment and asks the package index
def test_end_to_end_with_a_failure_and_its_retrigger(tmp_path: Path) -> None:
    home, published = tmp_path / "builds", tmp_path / "published"
    published.write_text("in the way")
    with examples.example(home, published) as pipeline:
        book = Book(pipeline)

        first = pipeline.run()
        assert first.status == "failure"
        assert failed_steps(first) == [PUBLISH], outs(first)
        results = flatten_outputs(first.outputs)
        assert "FileExistsError" in results[PUBLISH]["out"]
        assert results[LINT]["exit"] == results[TEST]["exit"] == 0
        assert "test_it_names_whom_it_greets" in results[TEST]["out"]
        assert results[AGREEMENT]["by"] == "a test"
        assert len(book.triggers) == 1
        assert sorted(book.started) == sorted(book.finished) == sorted((1, step_id) for step_id in results)
        order = [step_id for _, step_id in book.finished]
        assert order.index(WHEEL) > max(order.index(LINT), order.index(TEST))
        assert order[-3:] == [(1, *AGREEMENT), AGREEMENT, PUBLISH]
        assert not list(home.glob("workspace-*"))

        published.unlink()
        second = pipeline.retrigger(1, PUBLISH)
        assert second.status == "success", outs(second)
        assert second.outputs[WORKSPACE]["retrigger_mock_for_build_number"] == 1
        assert len(book.triggers) == 1  # nobody is asked again
        [wheel] = published.glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert second.outputs[PUBLISH]["sha256"] == digest
        assert (published / f"{wheel.name}.sha256").read_text() == f"{digest}  {wheel.name}\n"
        greeting = [sys.executable, "-c", "import greeting; print(greeting.greet('you'))"]
        said = subprocess.run(greeting, env={"PYTHONPATH": str(wheel)}, capture_output=True, text=True, check=True)
        assert said.stdout == "Hello, you!\n"

        third = pipeline.retrigger(2, PUBLISH)  # what was mocked in the second is in the third too
        assert third.outputs[PUBLISH]["sha256"] == digest
        assert [(told.build_number, told.status) for told in book.ended] == [
            (1, "failure"),
            (2, "success"),
            (3, "success"),
        ]
        assert pipeline.state.step_results(1)[PUBLISH]["status"] == "failure"


def load() -> ModuleType:
    """Loads the example as a file, as the terminal does."""
    spec = importlib.util.spec_from_file_location("an_example", examples.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_terminal_finds_a_pipeline_that_importing_does_not_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = load()
    assert list(tmp_path.iterdir()) == []
    with module.pipeline as pipeline:
        assert isinstance(pipeline, Pipeline)
        assert module.pipeline is pipeline
        assert [path.name for path in tmp_path.iterdir()] == ["builds"]
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018
