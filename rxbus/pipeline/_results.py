"""Results of steps: what they hold, how a container makes one of its children's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rxbus.pipeline.topics import PipelineFinished

StepId = tuple[int, ...]  # child first: (1, 2, 3) is the first child of the second child of step 3
Result = dict[str, Any]

TIMESTAMPS = ("first_updated_at", "most_recent_update_at")
MOCK = "retrigger_mock_for_build_number"  # the key that tells from which build a result was taken
OWN = frozenset(("outputs", MOCK, *TIMESTAMPS))  # what is said of one step, and is no other's to take over


class Status(StrEnum):
    """How a step, or a build, is doing; equal to its plain string."""

    SUCCESS = "success"
    FAILURE = "failure"
    RUNNING = "running"
    WAITING = "waiting"
    KILLED = "killed"
    DEAD = "dead"
    UNKNOWN = "unknown"


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
    if not isinstance(outputs, dict) or not all(isinstance(step_id, tuple) for step_id in outputs):
        return {}
    return outputs


def failed_steps(finished: PipelineFinished) -> list[StepId]:
    """Gives the ids of the steps that have failed themselves: not those of containers, where a child did."""
    return [
        step_id
        for step_id, result in flatten_outputs(finished.outputs).items()
        if result.get("status") == Status.FAILURE and not outputs_of(result)
    ]
