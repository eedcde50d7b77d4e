"""What can go wrong with pipelines and what is kept of them; all in the tree under `RxBusError`.

RxBusError
├── UnknownBuild     (also LookupError)  no build of that number, or not any more
├── UnknownStep      (also LookupError)  a build that has no such step
├── StructureChanged                     a build of a pipeline that has other steps by now
├── DamagedState                         a file of a build that cannot be read
└── PipelineClosed                       the pipeline has been shut down
"""

from __future__ import annotations

from pathlib import Path

from rxbus.errors import RxBusError
from rxbus.pipeline._results import StepId

__all__ = ["DamagedState", "PipelineClosed", "StructureChanged", "UnknownBuild", "UnknownStep"]


class UnknownBuild(RxBusError, LookupError):
    """There is no build of that number, or it has been removed.

    Attributes:
        build_number: The number.
    """

    def __init__(self, build_number: int) -> None:
        super().__init__(build_number)
        self.build_number = build_number

    def __str__(self) -> str:
        return f"there is no build {self.build_number!r}"


class UnknownStep(RxBusError, LookupError):
    """A build has no such step.

    Attributes:
        build_number: The build.
        step_id: The step that was asked for.
    """

    def __init__(self, build_number: int, step_id: StepId) -> None:
        super().__init__(build_number, step_id)
        self.build_number = build_number
        self.step_id = step_id

    def __str__(self) -> str:
        return f"build {self.build_number!r} has no step {self.step_id!r}, or did not come to it"


class StructureChanged(RxBusError):
    """A build cannot be repeated: the pipeline has had other steps then.

    Attributes:
        build_number: The build.
        change: Where they differ first.
    """

    def __init__(self, build_number: int, change: str) -> None:
        super().__init__(build_number, change)
        self.build_number = build_number
        self.change = change

    def __str__(self) -> str:
        return f"build {self.build_number!r} had other steps than the pipeline has now: {self.change}"


class DamagedState(RxBusError):
    """A file of a build cannot be read, or holds what was never written to it. Other builds are not touched.

    Attributes:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.reason}"


class PipelineClosed(RxBusError):
    """The pipeline has been shut down: nothing more can be started."""

    def __str__(self) -> str:
        return "the pipeline has been shut down"
