"""What tests of pipelines share: steps, and a book of what is told on a bus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rxbus import Event, EventBus
from rxbus.pipeline import PipelineFinished, StepContext, StepId, topics

PATIENCE = 10.0  # seconds that anything in a test may take

Args = dict[str, Any]
Step = Callable[[Args, StepContext], Any]
Line = tuple[Any, ...]

NAMES = {
    topics.STEP_STARTED.name: "started",
    topics.STEP_RESULT_UPDATED.name: "updated",
    topics.STEP_FINISHED.name: "finished",
    topics.PIPELINE_STARTED.name: "begun",
    topics.PIPELINE_FINISHED.name: "ended",
}


class Book:
    """Everything that a bus tells, in its one order."""

    def __init__(self, bus: EventBus) -> None:
        self.events: list[Event[Any]] = []
        bus.subscribe(">", name="book").subscribe(self.events.append)

    def of(self, topic: Any) -> list[Any]:
        """The payloads of one topic."""
        return [event.payload for event in list(self.events) if event.topic == topic.name]

    def lines(self, build_number: int | None = None) -> list[Line]:
        """`("started", (1,))`, `("updated", (1,), "running")`, … of a build."""
        return [
            _line(event)
            for event in list(self.events)
            if event.topic in NAMES and build_number in (None, event.payload.build_number)
        ]

    def order(self) -> list[Line]:
        """The lines without updates."""
        return [line[:2] for line in self.lines() if line[0] != "updated"]

    def updates(self, step_id: StepId) -> list[dict[str, Any]]:
        """What was told of a step's result."""
        return [one.step_result for one in self.of(topics.STEP_RESULT_UPDATED) if one.step_id == step_id]

    def finished(self, step_id: StepId) -> topics.StepFinished:
        """The one end of a step."""
        [one] = [one for one in self.of(topics.STEP_FINISHED) if one.step_id == step_id]
        assert isinstance(one, topics.StepFinished)
        return one


def _line(event: Event[Any]) -> Line:
    name, payload = NAMES[event.topic], event.payload
    if name == "begun":
        return (name,)
    if name == "ended":
        return (name, payload.status)
    if name == "started":
        return (name, payload.step_id)
    result = payload.step_result if name == "updated" else payload.final_result
    return (name, payload.step_id, result.get("status"))


def ok(**fields: Any) -> Step:
    """Makes a step that succeeds."""

    def step(args: Args, ctx: StepContext) -> Any:
        return {"status": "success", **fields}

    return step


def bad(**fields: Any) -> Step:
    """Makes a step that fails."""
    return ok(**{**fields, "status": "failure"})


def until_killed(started: threading.Event | None = None, **fields: Any) -> Step:
    """Makes a step that waits to be killed."""

    def step(args: Args, ctx: StepContext) -> Any:
        if started is not None:
            started.set()
        killed = ctx.wait_killed(PATIENCE)
        return {"status": "killed" if killed else "failure", **fields}

    return step


class Sees:
    """A step that succeeds, and keeps what it was given."""

    __name__ = "sees"

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.args: list[Args] = []
        self.cwds: list[Any] = []

    def __call__(self, args: Args, ctx: StepContext) -> Any:
        self.args.append(args)
        self.cwds.append(ctx.cwd)
        return {"status": "success", **self.fields}


def plain(finished: PipelineFinished) -> dict[StepId, Any]:
    """The statuses of a build's outermost steps."""
    return {step_id: str(result["status"]) for step_id, result in finished.outputs.items()}
