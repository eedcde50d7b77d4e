"""Containers: steps made of steps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from inspect import iscoroutinefunction, signature
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rxbus.errors import InvalidArgument
from rxbus.pipeline._build import Build, Role
from rxbus.pipeline._files import WORKSPACE_NAME, remove_tree
from rxbus.pipeline._kill import KillSwitch
from rxbus.pipeline._results import OWN, Result, Status, StepId, all_must_succeed, merged, own_copy, text_of
from rxbus.pipeline._step import Args, Step, StepContext, run_step

Outputs = dict[StepId, Result]


class Container:
    """A step made of steps: what they are, and how they are run.

    Attributes:
        steps: Its children, numbered from 1; None: the number is left out.
        kind: What made it: `in_parallel`, `run`, …
    """

    side_by_side = False  # its children run in parallel
    race = False  # one success among them is enough
    transparent = False  # a child that adds nothing but words hands on what it was given

    def __init__(self, kind: str, steps: Iterable[Step | None], name: str | None = None) -> None:
        self.kind = kind
        self.steps = tuple(steps)
        self.__name__ = name or kind
        for step in _present(self.steps):
            _check(step)

    def __call__(self, args: Args, context: StepContext) -> Result:
        return together(run_in_sequence(context._build, self, args, context))

    def _run_child(self, number: int, args: Args, context: StepContext) -> Result:
        step = self.steps[number - 1]
        assert step is not None
        step_id = (number, *context.step_id)
        return run_step(context._build, step, step_id, own_copy(args), context, role_of(context._build, step_id, self))

    def _start_child(self, number: int, args: Args, context: StepContext) -> Future[Result]:
        name = f"rxbus-step-{text_of((number, *context.step_id))}"
        return context._build.start(partial(self._run_child, number, args, context), name)


def role_of(build: Build, step_id: StepId, within: Container) -> Role:
    """What a build does with a step."""
    if build.retrigger is None:
        return Role.NORMAL
    return build.retrigger.role(step_id, within.side_by_side, within.race)


def run_in_sequence(build: Build, within: Container, args: Args, context: StepContext | None) -> Outputs:
    """Runs steps one after another until one does not succeed.

    Each is given what all are given, overlaid by the result of the one before; what a result holds under `global` goes
    on to all that follow. Each has a copy of its own: what it does to that is seen by no other.
    """
    outputs: Outputs = {}
    parent_id = () if context is None else context.step_id
    shared = _shared(args)
    given = args
    for number, step in enumerate(within.steps, 1):
        if step is None:
            continue
        step_id = (number, *parent_id)
        result = run_step(build, step, step_id, own_copy(given), context, role_of(build, step_id, within))
        outputs[step_id] = result
        if result["status"] != Status.SUCCESS:
            break
        shared |= _shared(result)
        told = {key: value for key, value in result.items() if key not in OWN}
        given = {**(given if within.transparent and told.keys() <= {"status", "out"} else args), **told}
        if shared:
            given["global"] = dict(shared)
    return outputs


def _shared(result: Mapping[str, Any]) -> dict[str, Any]:
    shared = result.get("global")
    return dict(shared) if isinstance(shared, dict) else {}  # somebody's own


def together(outputs: Outputs) -> Result:
    """A container's result: all of its children must succeed."""
    ordered = {step_id: outputs[step_id] for step_id in sorted(outputs)}
    status = all_must_succeed(result["status"] for result in ordered.values())
    return {**merged(ordered.values()), "status": status, "outputs": ordered}


class _Parallel(Container):
    side_by_side = True

    def __call__(self, args: Args, context: StepContext) -> Result:
        running: dict[StepId, Future[Result]] = {}
        try:
            for number in _numbers(self.steps):
                running[(number, *context.step_id)] = self._start_child(number, args, context)
        finally:
            wait(running.values())  # also where there was no thread for another
        return together({step_id: child.result() for step_id, child in running.items()})


class _Either(Container):
    race = True

    def __call__(self, args: Args, context: StepContext) -> Result:
        losers = context._kill_below = KillSwitch(context._kill)
        ended: SimpleQueue[Future[Result]] = SimpleQueue()
        numbers = _numbers(self.steps)
        try:
            for number in numbers:
                self._start_child(number, args, context).add_done_callback(ended.put)
            for _ in numbers:
                result = ended.get().result()
                if result["status"] == Status.SUCCESS and not context.killed:
                    return {key: value for key, value in result.items() if key not in OWN}
        finally:
            losers.throw()
        return {"status": Status.KILLED if context.killed else Status.FAILURE}


class _InDirectory(Container):
    def __init__(self, path: str | PathLike[str], steps: Iterable[Step | None]) -> None:
        if not isinstance(path, str | PathLike):
            raise InvalidArgument(f"in_cwd is given a directory before the steps, not {path!r}")
        super().__init__("in_cwd", steps, f"in_cwd {path}")
        self._path = Path(path)

    def __call__(self, args: Args, context: StepContext) -> Result:
        context._cwd = context._cwd / self._path
        return super().__call__(args, context)


class _InWorkspace(Container):
    def __call__(self, args: Args, context: StepContext) -> Result:
        home = context._build.home
        prefix = WORKSPACE_NAME.format(context.build_number, text_of(context.step_id))
        workspace = tempfile.mkdtemp(prefix=prefix, dir=home)
        context._cwd = Path(workspace)
        try:
            return super().__call__(args, context)
        finally:
            remove_tree(Path(workspace))


class _Junction(Container):
    def __call__(self, args: Args, context: StepContext) -> Result:
        condition = self._run_child(1, args, context)
        if context.killed:
            return {"status": Status.KILLED}
        branch = 2 if condition["status"] == Status.SUCCESS else 3
        if self.steps[branch - 1] is None:
            return together({})
        result = self._run_child(branch, args, context)
        return {**together({(branch, *context.step_id): result}), "status": result["status"]}


class _Chain(Container):
    transparent = True

    def __call__(self, args: Args, context: StepContext) -> Result:
        outputs = run_in_sequence(context._build, self, args, context)
        result = together(outputs)
        outs = [str(one["out"]) for one in outputs.values() if one.get("out")]
        return {**result, "out": "\n".join(outs)} if outs else result


def in_parallel(*steps: Step | None) -> Step:
    """Runs steps at the same time, each on a thread of its own; all must succeed.

    The result merges theirs in order of their numbers: dicts by one level, lists joined, else the later wins. Theirs
    are under `outputs`.
    """
    return _Parallel("in_parallel", _present(steps))


def either(*steps: Step | None) -> Step:
    """Runs steps at the same time until one succeeds: its result is the result, and the others are killed.

    They are not waited for, but by the end of the build. Where all fail it is a failure, and `outputs` is never there.
    """
    return _Either("either", _present(steps))


def run(*steps: Step | None) -> Step:
    """Runs steps one after another, as one; the result is made of theirs as that of `in_parallel`."""
    return Container("run", _present(steps))


def in_cwd(path: str | PathLike[str], *steps: Step | None) -> Step:
    """Runs steps one after another in a directory; a relative one is taken from where the container stands."""
    return _InDirectory(path, _present(steps))


def with_workspace(*steps: Step | None) -> Step:
    """Runs steps one after another in a new directory under the pipeline's home, removed at the end."""
    return _InWorkspace("with_workspace", _present(steps))


def junction(condition: Step, if_true: Step | None, if_false: Step | None) -> Step:
    """Runs one of two steps, by whether a third succeeds: their ids are 2 and 3, the condition's is 1.

    The result is the branch's, with its own under `outputs`; without a branch it is a success.

    Raises:
        InvalidArgument: There is no condition, or one of the three is no step.
    """
    _check(condition)
    return _Junction("junction", (condition, if_true, if_false))


def alias(name: str, step: Step) -> Step:
    """Gives a step another name.

    Raises:
        InvalidArgument: The name is no text, or the step is none.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"a step's other name is a text, not {name!r}")
    return Container("alias", (step,), name)


def chain(*functions: Step | None) -> Step:
    """Makes one step of several calls, each given what the one before has returned; None adds nothing.

    The result is made of theirs as that of `in_parallel`, but `out` is all of theirs, in lines.
    """
    return _Chain("chain", [_part(function) for function in _present(functions)])


def _part(function: Step) -> Step:
    _check(function)
    if isinstance(function, Container):
        return function

    def part(args: Args, context: StepContext) -> Any:
        result = function(args, context)
        return {"status": Status.SUCCESS} if result is None else result

    part.__name__ = getattr(function, "__name__", type(function).__name__)
    return part


def _check(step: object) -> None:
    if not callable(step):
        raise InvalidArgument(f"a step is a function of arguments and context, not {step!r}")
    if iscoroutinefunction(step) or iscoroutinefunction(getattr(step, "__call__", None)):  # noqa: B004 (its kind matters)
        raise InvalidArgument(f"a step runs on a thread of its own, and is no coroutine function as {step!r} is")
    try:
        signature(step).bind({}, None)
    except ValueError:  # it has none
        return
    except TypeError as error:
        raise InvalidArgument(f"a step is called with arguments and context: {step!r} {error}") from error


def _present(steps: Iterable[Step | None]) -> list[Step]:
    return [step for step in steps if step is not None]


def _numbers(steps: tuple[Step | None, ...]) -> list[int]:
    return [number for number, step in enumerate(steps, 1) if step is not None]
