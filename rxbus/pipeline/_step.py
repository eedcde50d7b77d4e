"""A step: how it is run, and what it sees of its build."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from math import isfinite
from pathlib import Path
from reprlib import repr as brief  # short, and safe against a `__repr__` that raises
from typing import Any

from rxbus import Event, EventBus
from rxbus.errors import InvalidArgument
from rxbus.pipeline import topics
from rxbus.pipeline._build import Build, Role
from rxbus.pipeline._kill import KillSwitch
from rxbus.pipeline._results import ALIVE, Result, Status, StepId, unified
from rxbus.pipeline._updates import Updates

Args = dict[str, Any]

LEAVES = (str, int, float, datetime)


class StepContext:
    """What a step is given besides its arguments: where it stands, and how to tell how it is doing."""

    def __init__(self, build: Build, step_id: StepId, parent: StepContext | None) -> None:
        self._build = build
        self._step_id = step_id
        self._parent = parent
        self._kill = KillSwitch(build.kill if parent is None else parent._kill_below)
        self._kill_below: KillSwitch = self._kill  # what kills its children
        self._updates = Updates(self._publish, build.updates_per_second, build.clock)
        self._children: dict[StepId, str] = {}  # how they are doing; both change under the lock of the updates
        self._statuses: Counter[str | None] = Counter()  # how many of them are doing so; None: those that were none yet
        self._cwd: Path = _working_directory() if parent is None else parent._cwd

    @property
    def build_number(self) -> int:
        """The build's number."""
        return self._build.number

    @property
    def step_id(self) -> StepId:
        """The step's id, child first."""
        return self._step_id

    @property
    def bus(self) -> EventBus:
        """The bus that the pipeline tells its events on; steps may publish events of their own."""
        return self._build.bus

    @property
    def cwd(self) -> Path:
        """Where the step is to work."""
        return self._cwd

    @property
    def killed(self) -> bool:
        """Whether the step is to end, and should return the status `killed` soon."""
        return self._kill.thrown

    def wait_killed(self, timeout: float | None = None) -> bool:
        """Waits until the step is to end; False when so many seconds have passed."""
        return self._kill.wait(timeout)

    def update(self, /, **fields: Any) -> None:
        """Tells an intermediate result: these fields overlay what was told before.

        They are published at most so many times per second as the pipeline says, the last before the step's end always.
        Once the body has returned, nothing happens.

        Raises:
            InvalidArgument: A value is none that JSON can hold, or the status is none.
        """
        told = checked(fields)
        self._updates.change(lambda result: _waiting({**result, **told}))

    def replace(self, result: Mapping[str, Any]) -> None:
        """Tells an intermediate result, in place of all that was told before; that a kill came in stays.

        Raises:
            InvalidArgument: It is no mapping, a value is none that JSON can hold, or the status is none.
        """
        if not isinstance(result, Mapping):
            raise InvalidArgument(f"a result is a dict, not {result!r}")
        told = checked(result)
        self._updates.change(lambda before: _waiting({**_of_the_kill(before), "status": Status.RUNNING, **told}))

    def _publish(self, result: Result) -> None:
        self._build.publish(
            topics.STEP_RESULT_UPDATED, topics.StepResultUpdated(self._build.number, self._step_id, result)
        )
        if self._parent is not None:
            self._parent._child_is(self._step_id, str(result.get("status", Status.UNKNOWN)))

    def _child_is(self, step_id: StepId, status: str) -> None:
        """A child's result has changed: a container is doing as its children are."""
        self._updates.change(lambda result: self._as_the_children(result, step_id, status))

    def _as_the_children(self, result: Result, step_id: StepId, status: str) -> Result:
        before, self._children[step_id] = self._children.get(step_id), status
        self._statuses[status] += 1
        self._statuses[before] -= 1
        together = unified(one for one, count in self._statuses.items() if one is not None and count > 0)
        return result if result.get("status") == together else _waiting({**result, "status": together})

    def _on_kill_event(self, event: Event[topics.KillStep]) -> None:
        kill = event.payload
        if kill.build_number in (None, self._build.number) and kill.step_id in (None, self._step_id):
            self._kill.throw()

    def _on_kill(self) -> None:
        self._updates.change(lambda result: {**result, "received_kill": True})


Step = Callable[[Args, StepContext], Any]


def run_step(build: Build, step: Step, step_id: StepId, args: Args, parent: StepContext | None, role: Role) -> Result:
    """Runs a step, tells all of it, and gives its result.

    It does not raise, whatever the step does.

    Raises:
        RxBusError: Nothing can be told: the bus has been closed.
    """
    if role is Role.MOCK:
        return _mock(build, step_id, parent)
    return _run(build, step, step_id, args, parent, role is Role.RERUN)


def _run(build: Build, step: Step, step_id: StepId, args: Args, parent: StepContext | None, rerun: bool) -> Result:
    context = StepContext(build, step_id, parent)
    listening = build.bus.subscribe(topics.KILL_STEP, name=f"kill of step {step_id}").subscribe(context._on_kill_event)
    try:
        context._updates.begin({"status": Status.RUNNING})
        context._kill.call(context._on_kill)
        build.publish(topics.STEP_STARTED, topics.StepStarted(build.number, step_id))
        returned = _body(step, args, context)
        context._updates.stop()
        gathered = context._updates.result
        if context.killed:  # it may have ended before it could be told so
            gathered["received_kill"] = True
        final = _final(gathered, returned)
        result = context._updates.close(final)
    finally:
        listening.dispose()
        context._kill.leave()
    build.publish(topics.STEP_FINISHED, topics.StepFinished(build.number, step_id, result, rerun))
    return result


def _body(step: Step, args: Args, context: StepContext) -> Any:
    """Calls the step; gives what it returns, or what it has raised."""
    try:
        return step(args, context)
    except BaseException as error:  # SystemExit too: it is the step's end, not the program's
        return error


def _final(gathered: Result, returned: Any) -> Result:
    """What a step told, overlaid by what it has returned; a failure where that makes no sense."""
    try:
        return _overlaid(gathered, returned)
    except BaseException as error:  # of an object of the step's, that was only looked at
        return _failed(gathered, "".join(traceback.format_exception(error)))


def _overlaid(gathered: Result, returned: Any) -> Result:
    if isinstance(returned, BaseException):
        return _failed(gathered, "".join(traceback.format_exception(returned)))
    if not isinstance(returned, dict):
        return _failed(gathered, f"step did not return a result, but {brief(returned)}")
    copy, faults = _stored(returned)
    result = {**gathered, **copy}
    if faults:
        return _failed(result, "\n".join(faults.values()))
    if "status" not in copy:
        return _failed(result, "step did not return any status!")
    if copy["status"] not in list(Status):
        return _failed(result, f"step returned an unknown status: {brief(copy['status'])}")
    if copy["status"] in ALIVE:
        return _failed(_waiting(result), f"step returned the status {str(copy['status'])!r}, which is no end")
    return _waiting({**result, "status": Status(copy["status"])})


def _failed(result: Result, why: str) -> Result:
    why = why.encode(errors="backslashreplace").decode()  # it may quote what is no text
    out = result.get("out")
    return {**result, "status": Status.FAILURE, "out": f"{out}\n{why}" if out else why}


def _mock(build: Build, step_id: StepId, parent: StepContext | None) -> Result:
    """Tells again what an old build's step had come to, and what the steps in it had."""
    assert build.retrigger is not None
    old = build.retrigger
    result: Result = {}
    for one, result in old.told_again(step_id):  # the step itself comes last
        build.publish(topics.STEP_RESULT_UPDATED, topics.StepResultUpdated(build.number, one, result))
    if parent is not None:
        parent._child_is(step_id, result["status"])
    build.publish(topics.STEP_STARTED, topics.StepStarted(build.number, step_id))
    build.publish(topics.STEP_FINISHED, topics.StepFinished(build.number, step_id, result, True))
    return result


def _waiting(result: Result) -> Result:
    return {**result, "has_been_waiting": True} if result.get("status") == Status.WAITING else result


def _of_the_kill(result: Result) -> Result:
    return {"received_kill": True} if result.get("received_kill") else {}


class _Unstorable(Exception):
    """JSON cannot hold it."""


def checked(fields: Mapping[str, Any]) -> Result:
    """Gives a copy of an intermediate result.

    Raises:
        InvalidArgument: It is none.
    """
    copy, faults = _stored(fields)
    if "status" in copy and copy["status"] not in list(Status):
        faults["status"] = f"unknown status: {brief(copy['status'])}"
    if faults:
        raise InvalidArgument("\n".join(faults.values()))
    return copy


def _stored(result: Mapping[Any, Any]) -> tuple[Result, dict[Any, str]]:
    """Gives a copy of what JSON can hold of a result, so that nobody changes what was told; says why of the rest."""
    copy: Result = {}
    faults: dict[Any, str] = {}
    for key, value in list(result.items()):
        name = key if isinstance(key, str) else brief(key)
        try:
            copy |= _copied({key: value}, False)
        except _Unstorable as error:
            faults[key] = f"{name}: JSON cannot hold {error}"
        except RecursionError:
            faults[key] = f"{name}: JSON cannot hold what is nested so deeply"
    return copy, faults


def _copied(value: Any, by_step: bool) -> Any:
    """Gives a copy of a value, which may be by step.

    No default for that: Python 3.13.0 does not count the depth of calls that leave out an argument.

    Raises:
        _Unstorable: JSON cannot hold it; names what it is.
    """
    if isinstance(value, dict):
        copy = {}
        for key, one in list(value.items()):
            if not (isinstance(key, str) and _encodes(key)) and not (by_step and _is_step_id(key)):
                raise _Unstorable(f"the key {brief(key)}")
            copy[key] = _copied(one, key == "outputs")
        return copy
    if isinstance(value, list):
        return [_copied(one, False) for one in value]
    if isinstance(value, tuple):
        return tuple(_copied(one, False) for one in value)
    endless = isinstance(value, float) and not isfinite(value)  # would come back as None
    too_big = isinstance(value, int) and not -(2**63) <= value < 2**64  # would come back as a float
    if endless or too_big or not (value is None or (isinstance(value, LEAVES) and _encodes(value))):
        raise _Unstorable(brief(value))
    return value


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it has been removed: whoever needs it will tell
        return Path()


def _encodes(value: Any) -> bool:
    try:
        topics.encode(value)
    except Exception:  # a number out of range, text that is none
        return False
    return True


def _is_step_id(key: object) -> bool:
    return isinstance(key, tuple) and bool(key) and all(type(one) is int for one in key)
