"""Build pipelines on the bus.

Their parts know each other by topics alone (`rxbus.pipeline.topics`): steps tell how they are doing, the state
component keeps it, runners and triggers wait for it, kills are told to the steps. So anybody may listen, and compose.
"""

from rxbus.pipeline._containers import alias, chain, either, in_cwd, in_parallel, junction, run, with_workspace
from rxbus.pipeline._pipeline import Pipeline
from rxbus.pipeline._results import Result, Status, StepId, failed_steps, flatten_outputs
from rxbus.pipeline._runners import start_new_run_after_first_step_finished, start_one_run_after_another, stop_runner
from rxbus.pipeline._shell import shell
from rxbus.pipeline._state import State
from rxbus.pipeline._step import Args, Step, StepContext
from rxbus.pipeline._structure import StepStructure
from rxbus.pipeline._triggers import parameterized_trigger, post_trigger, wait_for_manual_trigger
from rxbus.pipeline.errors import DamagedState, PipelineClosed, StructureChanged, UnknownBuild, UnknownStep
from rxbus.pipeline.topics import PipelineFinished

__all__ = [
    "Args",
    "DamagedState",
    "Pipeline",
    "PipelineClosed",
    "PipelineFinished",
    "Result",
    "State",
    "Status",
    "Step",
    "StepContext",
    "StepId",
    "StepStructure",
    "StructureChanged",
    "UnknownBuild",
    "UnknownStep",
    "alias",
    "chain",
    "either",
    "failed_steps",
    "flatten_outputs",
    "in_cwd",
    "in_parallel",
    "junction",
    "parameterized_trigger",
    "post_trigger",
    "run",
    "shell",
    "start_new_run_after_first_step_finished",
    "start_one_run_after_another",
    "stop_runner",
    "wait_for_manual_trigger",
    "with_workspace",
]
