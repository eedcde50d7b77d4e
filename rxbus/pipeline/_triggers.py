"""Triggers: steps that wait for somebody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from rxbus import Event, EventBus, InvalidArgument
from rxbus._bell import Bell
from rxbus.pipeline import topics
from rxbus.pipeline._results import Result, Status
from rxbus.pipeline._step import Args, Step, StepContext, checked

LOOK = 0.5  # seconds from one look for a kill to the next

Answer = topics.ManualTriggerReceived | None  # None: a kill


def wait_for_manual_trigger(args: Args, ctx: StepContext) -> Result:
    """A step that waits until somebody answers its trigger: see `post_trigger`; the answer's parameters are its result.

    Its result tells the `trigger_id` while it waits. A kill ends it.
    """
    return _wait(ctx)


def parameterized_trigger(parameters: Mapping[str, Any]) -> Step:
    """Makes a trigger that tells, in its result's `parameters`, which ones it wants to be answered with.

    Args:
        parameters: What is said of each by its name, for whoever answers: a text, or a dict with a text under `desc`.
            No defaults: the terminal asks for every one.

    Raises:
        InvalidArgument: They are none, or JSON cannot hold them.
    """
    if not isinstance(parameters, Mapping):
        raise InvalidArgument(f"a trigger's parameters are a dict, not {parameters!r}")
    checked({"parameters": dict(parameters)})

    def wait_for_parameterized_trigger(args: Args, ctx: StepContext) -> Result:
        ctx.update(parameters=dict(parameters))
        return _wait(ctx)

    return wait_for_parameterized_trigger


def post_trigger(bus: EventBus, trigger_id: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Answers the step that waits for this trigger; where none does, nothing happens.

    Raises:
        InvalidArgument: It is no trigger's id, or JSON cannot hold the parameters: the step goes on waiting.
    """
    if not isinstance(trigger_id, str) or not isinstance(parameters, Mapping | None):
        raise InvalidArgument(f"a trigger is answered by its id and a dict, not {trigger_id!r} and {parameters!r}")
    checked(parameters or {})
    received = topics.ManualTriggerReceived(trigger_id, None if parameters is None else dict(parameters))
    bus.publish(topics.MANUAL_TRIGGER_RECEIVED, received)


def _first(answers: list[topics.ManualTriggerReceived], told: Bell, ctx: StepContext) -> Answer:
    """Waits for an answer, or a kill; also looks for them, since whoever gives one may be interrupted before it tells.

    No `queue.Queue`: struck in its Python code, it stays locked.
    """
    while not answers:
        if ctx.killed:
            return None
        told.wait(LOOK)
    return answers[0]


def _wait(ctx: StepContext) -> Result:
    trigger_id = str(uuid4())
    answers: list[topics.ManualTriggerReceived] = []
    told = Bell()

    def hear(event: Event[topics.ManualTriggerReceived]) -> None:
        if event.payload.trigger_id == trigger_id:
            answers.append(event.payload)
            told.ring()

    attached = ctx.bus.subscribe(topics.MANUAL_TRIGGER_RECEIVED, name=f"trigger of step {ctx.step_id}").subscribe(hear)
    try:
        ctx._kill.call(told.ring)
        ctx.update(trigger_id=trigger_id, status=Status.WAITING, out="Waiting for trigger...")
        answer = _first(answers, told, ctx)
    finally:
        attached.dispose()
    if answer is None:
        return {"status": Status.KILLED}
    return {**(answer.parameters or {}), "status": Status.SUCCESS}
