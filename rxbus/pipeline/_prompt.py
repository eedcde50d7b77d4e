"""Triggers: which steps wait for one, and who answers, at the terminal or from another one."""

from __future__ import annotations

import os
import re
import select
import sys
import threading
from contextlib import suppress
from typing import Any

import msgspec

from rxbus._console import plain
from rxbus.errors import BusClosed, PublishError, RxBusError
from rxbus.pipeline import topics
from rxbus.pipeline._display import Display
from rxbus.pipeline._pipeline import Pipeline
from rxbus.pipeline._report import json_text, walk
from rxbus.pipeline._results import Status, StepId, text_of
from rxbus.pipeline._triggers import post_trigger


class Waiting(msgspec.Struct, frozen=True):
    """A step that waits for a trigger."""

    trigger_id: str
    build_number: int
    step_id: str
    name: str
    parameters: dict[str, Any] | None = None

    def __str__(self) -> str:
        return plain(f"{self.name} ({self.step_id}) of build {self.build_number}")


class Request(msgspec.Struct, frozen=True):
    """What another terminal wants: to answer a trigger or, without one, to know what waits."""

    trigger_id: str | None = None
    parameters: dict[str, Any] | None = None


class Reply(msgspec.Struct, frozen=True):
    """What it is told."""

    waiting: list[Waiting]
    answered: bool = False


class Triggers:
    """The steps that wait for a trigger; each is answered once, by whoever comes first. Any thread may use it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()  # guards the two below; nothing is called under it
        self._waiting: dict[tuple[int, StepId], Waiting] = {}
        self._answered: set[str] = set()

    def take(self, update: topics.StepResultUpdated) -> None:
        """Notes whether a step waits by now, or no more."""
        step, result = (update.build_number, update.step_id), update.step_result
        trigger_id = result.get("trigger_id")
        if result.get("status") != Status.WAITING or not isinstance(trigger_id, str):
            with self._lock:
                self._waiting.pop(step, None)
            return
        parameters = result.get("parameters")
        name = self._name(*step)
        waiting = Waiting(
            trigger_id, step[0], text_of(step[1]), name, parameters if isinstance(parameters, dict) else None
        )
        with self._lock:
            if trigger_id not in self._answered:
                self._waiting[step] = waiting

    def waiting(self) -> list[Waiting]:
        with self._lock:
            return list(self._waiting.values())

    def answer(self, trigger_id: str, parameters: dict[str, Any] | None) -> bool:
        """Answers a trigger; False where nothing waits for it any more."""
        with self._lock:
            found = self._take_out(trigger_id)
        if not found:
            return False
        with suppress(PublishError):  # a subscriber's failure; the step has heard it
            post_trigger(self._pipeline.bus, trigger_id, parameters)
        return True

    def _take_out(self, trigger_id: str) -> bool:
        found = [step for step, waiting in self._waiting.items() if waiting.trigger_id == trigger_id]
        for step in found:
            del self._waiting[step]
            self._answered.add(trigger_id)
        return bool(found)

    def reply(self, request: bytes) -> bytes:
        """Answers what has come through the socket."""
        try:
            wanted = msgspec.json.decode(request, type=Request)
            answered = wanted.trigger_id is not None and self.answer(wanted.trigger_id, wanted.parameters)
        except (msgspec.DecodeError, BusClosed):
            answered = False
        return msgspec.json.encode(Reply(self.waiting(), answered))

    def _name(self, number: int, step_id: StepId) -> str:
        with suppress(RxBusError):  # another pipeline's, on the same bus
            steps = {step.step_id: step for step in walk(self._pipeline.state.structure(number))}
            while (above := steps.get(step_id[1:])) is not None and above.kind == "alias":
                step_id = above.step_id
            if step_id in steps:
                return steps[step_id].name
        return "a step"


class Prompt:
    """Asks whoever sits at the terminal to answer triggers, and does not wait: it is looked at again and again.

    Args:
        triggers: What waits.
        display: Where it asks.
        hint: How else a trigger can be answered.
    """

    def __init__(self, triggers: Triggers, display: Display, hint: str) -> None:
        self._triggers = triggers
        self._display = display
        self._hint = hint
        self._stdin = _typed_at()
        self._typed = b""
        self._announced: set[str] = set()
        self._asked: Waiting | None = None
        self._given: dict[str, str] = {}
        self._left: list[str] = []  # the parameters that are still to be asked for

    def look(self) -> bool:
        """Goes on with asking; tells whether a question stands."""
        waiting = self._triggers.waiting()
        if self._asked is not None and self._asked.trigger_id not in {one.trigger_id for one in waiting}:
            self._display.note(f"\n{self._asked} does not wait any more")
            self._asked = None
        for one in waiting:
            if self._asked is None:
                self._begin(one)
        if self._asked is not None and self._stdin is not None:
            self._read(self._stdin)
        return self._asked is not None

    def _begin(self, waiting: Waiting) -> None:
        asking = self._stdin is not None
        if asking:
            self._display.pause()
        elif waiting.trigger_id in self._announced:
            return
        self._announced.add(waiting.trigger_id)
        self._display.note(f"{waiting} waits for a trigger; {self._hint}")
        if self._stdin is not None:
            _forget_typed(self._stdin)  # it was not meant as an answer to this
            self._typed = b""
            self._asked, self._given, self._left = waiting, {}, list(waiting.parameters or {})
            self._ask()

    def _ask(self) -> None:
        assert self._asked is not None
        if not self._left:
            self._display.note("Enter triggers it: ", end="")
            return
        name = self._left[0]
        told = (self._asked.parameters or {})[name]
        told = told.get("desc", told) if isinstance(told, dict) else told
        self._display.note(f"{plain(name)}, {plain(json_text(told))}: " if told else f"{plain(name)}: ", end="")

    def _read(self, stdin: int) -> None:
        if not _is_foreground(stdin) or not select.select([stdin], [], [], 0)[0]:
            return
        try:
            typed = os.read(stdin, 65536)
        except OSError:  # the terminal has gone
            typed = b""
        if not typed:
            self._display.note(f"\nno more answers from here; {self._hint}")
            self._stdin, self._asked = None, None
            return
        *lines, self._typed = re.split(rb"\r\n|\r|\n", self._typed + typed)
        for line in lines:
            self._line(line.decode(errors="replace"))

    def _line(self, line: str) -> None:
        if self._asked is None:
            return
        if self._left:
            self._given[self._left.pop(0)] = line
        elif line.strip().lower() not in ("", "y", "yes"):
            self._display.note("only that triggers it; Ctrl-C kills the build")
            self._ask()
            return
        if self._left:
            self._ask()
            return
        asked, self._asked = self._asked, None
        self._triggers.answer(asked.trigger_id, self._given or None)


def _typed_at() -> int | None:
    """Gives the file descriptor of a terminal that somebody may type at."""
    if os.name != "posix" or sys.stdin is None:
        return None
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (OSError, ValueError):
        return None


def _is_foreground(terminal: int) -> bool:
    """Whether what is typed there is for us; a job in the background that reads is stopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # it is not the one that controls us, so it does not stop us either
        return True


def _forget_typed(terminal: int) -> None:
    import termios  # here, since Windows has none

    with suppress(termios.error):
        termios.tcflush(terminal, termios.TCIFLUSH)
