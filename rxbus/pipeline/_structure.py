"""What a pipeline is made of, as it is kept with each of its builds."""

from __future__ import annotations

from itertools import zip_longest

import msgspec

from rxbus.pipeline._results import StepId, text_of


class StepStructure(msgspec.Struct, frozen=True):
    """A step and those below it.

    Attributes:
        step_id: Its id.
        name: How reports call it.
        kind: `step`, `shell`, or what kind of container it is: `in_parallel`, `either`, ...
        children: The steps below it, in order.
    """

    step_id: StepId
    name: str
    kind: str
    children: tuple[StepStructure, ...] = ()


def difference(before: tuple[StepStructure, ...], now: tuple[StepStructure, ...]) -> str | None:
    """Tells where two pipelines differ first, to somebody who wants to go on with the one's build in the other.

    By kinds, and by names, but for those of commands: a command that has been mended is what one retriggers for.
    """
    for old, new in zip_longest(before, now):
        if old is None or new is None:
            [one] = [one for one in (old, new) if one is not None]
            return f"step {text_of(one.step_id)}, {one.name!r}, is {'new' if old is None else 'gone'}"
        if (old.step_id, old.kind) != (new.step_id, new.kind) or (old.name != new.name and new.kind != "shell"):
            was, is_ = (f"{one.name!r}, {text_of(one.step_id)} ({one.kind})" for one in (old, new))
            return f"it was {was}, and is {is_}"
        if (below := difference(old.children, new.children)) is not None:
            return below
    return None
