"""Results of steps: what they hold, how a container makes one of its children's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from rxbus.pipeline.topics import PipelineFinished

StepId = tuple[int, ...]  # child first: (1, 2, 3) is the first child of the second child of step 3
Result = dict[str, Any]

TIMESTAMPS = ("first_updated_at", "most_recent_update_at")
MOCK = "retrigger_mock_for_build_number"  # the key that tells from which build a result was taken
OWN = frozenset(("outputs", MOCK, *TIMESTAMPS))  # what is said of one step, and is no other's to take over


STEP_ID = re.compile(r"(0|[1-9][0-9]*)(-(0|[1-9][0-9]*))*", re.ASCII)


class Status(StrEnum):
    """How a step, or a build, is doing; equal to its plain string."""

    SUCCESS = "success"
    FAILURE = "failure"
    RUNNING = "running"
    WAITING = "waiting"
    KILLED = "killed"
    DEAD = "dead"
    UNKNOWN = "unknown"


ALIVE = (Status.RUNNING, Status.WAITING)  # what no step ends with


def text_of(step_id: StepId) -> str:
    """Writes a step id as text: `2-1`."""
    return "-".join(map(str, step_id))


def step_id_of(text: str) -> StepId:
    """Reads what `text_of` writes.

    Raises:
        ValueError: It is no step id.
    """
    if not STEP_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no step: steps are written child first, as 2-1")
    return tuple(map(int, text.split("-")))


def is_time(value: object) -> TypeGuard[datetime]:
    """Whether it can be compared with other times: not where it has no time zone."""
    return isinstance(value, datetime) and value.tzinfo is not None


def own_copy(value: Any) -> Any:
    """Copies dicts, lists and tuples, all the way down, for somebody who may change them; the rest stays the same."""
    if type(value) is dict:
        return {key: own_copy(one) for key, one in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)([own_copy(one) for one in value])
    return value


def is_below(step_id: StepId, ancestor: StepId) -> bool:
    """Whether a step is another one, or stands below it."""
    return len(step_id) >= len(ancestor) and step_id[len(step_id) - len(ancestor) :] == ancestor


def unified(statuses: Iterable[str]) -> Status:
    """How a container is doing while its children run: as the liveliest of them."""
    present = set(statuses)
    for status in (Status.RUNNING, Status.WAITING, Status.FAILURE, Status.SUCCESS):
        if status in present:
            return status
    return Status.UNKNOWN


def all_must_succeed(statuses: Iterable[str]) -> Status:
    """How a container has ended: well if all of its children have."""
    present = set(statuses)
    if present <= {Status.SUCCESS}:
        return Status.SUCCESS
    return Status.KILLED if present <= {Status.SUCCESS, Status.KILLED} else Status.FAILURE


def merged(results: Iterable[Mapping[str, Any]]) -> Result:
    """One result of several: dicts merge one level, lists join, else the later wins.

    Status and outputs are for the container to say; times, and from which build it was taken, are each step's own.
    """
    result: Result = {}
    for one in results:
        for key, value in one.items():
            if key == "status" or key in OWN:
                continue
            before = result.get(key)
            if isinstance(before, dict) and isinstance(value, dict):
                value = {**before, **value}
            elif isinstance(before, list) and isinstance(value, list):
                value = [*before, *value]
            result[key] = value
    return result


def flatten_outputs(outputs: Mapping[StepId, Result]) -> dict[StepId, Result]:
    """Gives the results of all steps, those of containers' children too, by step id."""
    flat: dict[StepId, Result] = {}
    for step_id, result in outputs.items():
        flat[step_id] = result
        flat |= flatten_outputs(outputs_of(result))
    return flat


def outputs_of(result: Mapping[str, Any]) -> dict[StepId, Result]:
    """The results of a container's children; none where a step calls something of its own so."""
    outputs = result.get("outputs")
    if not isinstance(outputs, dict):
        return {}
    ours = all(isinstance(step_id, tuple) and isinstance(one, dict) for step_id, one in outputs.items())
    return outputs if ours else {}


def without_life(results: Mapping[StepId, Result]) -> dict[StepId, Result]:
    """Says of steps, and of what containers hold of theirs, that nobody runs them any more."""
    return {step_id: _without_life(result) for step_id, result in results.items()}


def _without_life(result: Result) -> Result:
    changes: Result = {}
    if result.get("status") in ALIVE:
        changes["status"] = Status.DEAD.value
    if below := outputs_of(result):
        changes["outputs"] = without_life(below)
    return {**result, **changes} if changes else result


def failed_steps(finished: PipelineFinished) -> list[StepId]:
    """Gives the ids of the steps that have failed themselves: not those of containers, where a child did.

    Of an `either` it gives its own, since its result holds nothing of its children's.
    """
    return [
        step_id
        for step_id, result in flatten_outputs(finished.outputs).items()
        if result.get("status") == Status.FAILURE and not outputs_of(result)
    ]
