"""What is told about builds, and to them: the topics, and the structs that are published on them.

They encode to JSON and back: `encode(payload)`, `decode(data, StepFinished)`. JSON knows neither tuples as keys nor
times: a step id is written `1-2-3`, a time as ISO 8601.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from rxbus import Topic
from rxbus.pipeline._results import TIMESTAMPS, Result, Status, StepId, step_id_of, text_of

__all__ = [
    "KILL_STEP",
    "MANUAL_TRIGGER_RECEIVED",
    "PIPELINE_FINISHED",
    "PIPELINE_STARTED",
    "STEP_FINISHED",
    "STEP_RESULT_UPDATED",
    "STEP_RESULT_UPDATE_CONSUMED",
    "STEP_STARTED",
    "STOP_RUNNER",
    "KillStep",
    "ManualTriggerReceived",
    "PipelineFinished",
    "PipelineStarted",
    "StepFinished",
    "StepResultUpdated",
    "StepStarted",
    "StopRunner",
    "decode",
    "encode",
]


class PipelineStarted(msgspec.Struct, frozen=True):
    """A build has begun, and none of its steps has."""

    build_number: int


class StepStarted(msgspec.Struct, frozen=True):
    """A step is about to run; its first update has been published."""

    build_number: int
    step_id: StepId


class StepResultUpdated(msgspec.Struct, frozen=True):
    """A step's result has changed."""

    build_number: int
    step_id: StepId
    step_result: Result


class StepFinished(msgspec.Struct, frozen=True):
    """A step has ended; its final update has been published.

    Attributes:
        build_number: The build.
        step_id: The step.
        final_result: Its result.
        rerun_for_retrigger: It is one that a retriggered build repeats or mocks: the runner is not to take it for new.
    """

    build_number: int
    step_id: StepId
    final_result: Result
    rerun_for_retrigger: bool = False


class PipelineFinished(msgspec.Struct, frozen=True):
    """A build has ended; published once, after all of its steps have finished."""

    build_number: int
    status: Status
    outputs: dict[StepId, Result]


class ManualTriggerReceived(msgspec.Struct, frozen=True):
    """Somebody has answered a step that waits for a trigger."""

    trigger_id: str
    parameters: dict[str, Any] | None = None


class KillStep(msgspec.Struct, frozen=True):
    """A step, and all below it, is to end; None: any build, any step."""

    build_number: int | None = None
    step_id: StepId | None = None


class StopRunner(msgspec.Struct, frozen=True):
    """No new builds are to be started."""


PIPELINE_STARTED = Topic("pipeline-started", PipelineStarted)
STEP_STARTED = Topic("step-started", StepStarted)
STEP_RESULT_UPDATED = Topic("step-result-updated", StepResultUpdated)
STEP_RESULT_UPDATE_CONSUMED = Topic("step-result-update-consumed", StepResultUpdated)
STEP_FINISHED = Topic("step-finished", StepFinished)
PIPELINE_FINISHED = Topic("pipeline-finished", PipelineFinished)
MANUAL_TRIGGER_RECEIVED = Topic("manual-trigger-received", ManualTriggerReceived)
KILL_STEP = Topic("kill-step", KillStep)
STOP_RUNNER = Topic("stop-runner", StopRunner)

RESULTS = ("step_result", "final_result")  # fields of payloads

T = TypeVar("T")


def encode(payload: Any) -> bytes:
    """Gives the JSON of a payload, a result, or a mapping of step ids to results.

    Raises:
        TypeError: It holds something that JSON cannot.
    """
    fields = msgspec.structs.asdict(payload) if isinstance(payload, msgspec.Struct) else payload
    return msgspec.json.encode(_plain(fields), enc_hook=_base)


def decode(data: bytes | str, kind: type[T] | Topic[T]) -> T:
    """Gives back what `encode` was given.

    Args:
        data: The JSON.
        kind: The type of what it holds, or the topic whose payload it is.

    Raises:
        msgspec.DecodeError: It is not JSON, or not of that kind.
    """
    if isinstance(kind, Topic):
        kind = kind.payload_type
    value = msgspec.json.decode(data)
    payload = isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict)
    return msgspec.convert(_payload(value) if payload else _result(value), kind, str_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {text_of(key) if isinstance(key, tuple) else key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _base(value: Any) -> Any:
    """Gives what somebody's own kind of a string or a number is made of."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"JSON has nothing for a {type(value).__name__}")


def _payload(fields: dict[str, Any]) -> dict[str, Any]:
    """Undoes `_plain` for a payload."""
    rich = {key: _result(one) if key in RESULTS else one for key, one in fields.items()}
    return {**rich, "outputs": _by_step(rich["outputs"])} if "outputs" in rich else rich


def _result(result: Any) -> Any:
    """Undoes `_plain` for a step's result, and those of the steps in it; what a step calls so of its own stays."""
    if not isinstance(result, dict):
        return result
    rich = {**result, "outputs": _by_step(result["outputs"])} if "outputs" in result else dict(result)
    for key in TIMESTAMPS:
        if isinstance(rich.get(key), str):
            with suppress(ValueError):  # somebody's own
                rich[key] = datetime.fromisoformat(rich[key])
    return rich


def _by_step(outputs: Any) -> Any:
    if not isinstance(outputs, dict) or not all(isinstance(one, dict) for one in outputs.values()):
        return outputs
    try:
        return {step_id_of(key): _result(one) for key, one in outputs.items()}
    except ValueError:  # somebody's own
        return outputs
