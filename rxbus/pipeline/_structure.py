"""What a pipeline is made of, as it is kept with each of its builds."""

from __future__ import annotations

import msgspec

from rxbus.pipeline._results import StepId


class StepStructure(msgspec.Struct, frozen=True):
    """A step and those below it.

    Attributes:
        step_id: Its id.
        name: How reports call it.
        kind: `step`, or what kind of container it is: `in_parallel`, `either`, ...
        children: The steps below it, in order.
    """

    step_id: StepId
    name: str
    kind: str
    children: tuple[StepStructure, ...] = ()
