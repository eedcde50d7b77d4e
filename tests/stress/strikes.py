"""Strikes a thread with KeyboardInterrupt at each point at which CPython would."""

from __future__ import annotations

import dis
import os
import sys
from types import CodeType, FrameType
from typing import Any

import rxbus

PACKAGE = os.path.dirname(rxbus.__file__) + os.sep

# CPython looks for signals when it enters a function, jumps back, and when a call of a C function has returned; between
# two other instructions it never does, and the bus builds on that. A tracer can raise only before an instruction. For a
# jump back that is the jump itself, which from Python 3.12 on need not be in the `try` around it; for the others it is
# the next one. (In `with lock: return list(x)` that stands outside of the block already, where a signal's exception
# stands inside: such points are left out.)
LOOKS = {"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX"}


class Strike:
    """A context in which the calling thread is struck once, at the n-th such point inside of rxbus's code.

    Args:
        nth: Which.
        also: Other modules' files that count as rxbus's.
    """

    def __init__(self, nth: int, *also: str) -> None:
        self._files = (PACKAGE, *also)
        self.left = nth
        self.where: str | None = None  # it was struck
        self._last: dict[FrameType, int | None] = {}  # the instruction that each frame has carried out last

    def __enter__(self) -> Strike:
        if sys.gettrace() is not None:  # coverage: two tracers do not go together, so that a few points are left out
            sys.setprofile(self._profiled)
        else:
            sys._getframe().f_trace_opcodes = True  # from 3.12 on, `settrace` looks whether any frame wants opcodes
            sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.gettrace() == self._called:
            sys.settrace(None)
        sys.setprofile(None)
        self._last.clear()

    def _profiled(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(self._files):
            self._pass(frame)

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_back in self._last:
            self._last[frame.f_back] = None  # a Python function: nothing is looked for when it has returned
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        self._last[frame] = frame.f_lasti  # where it resumes
        frame.f_trace, frame.f_trace_opcodes, frame.f_trace_lines = self._step, True, False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "return":
            self._last.pop(frame, None)
        elif event == "opcode":
            code, last, next_ = frame.f_code, self._last.get(frame), frame.f_lasti
            self._last[frame] = next_
            looked = last is not None and _name(code, last) in LOOKS and _handler(code, last) == _handler(code, next_)
            if looked or _name(code, next_) == "JUMP_BACKWARD":
                self._pass(frame)
        return self._step

    def _pass(self, frame: FrameType) -> None:
        """Comes by a point."""
        self.left -= 1
        if self.left == 0:
            self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
            raise KeyboardInterrupt  # which ends the tracing


_codes: dict[CodeType, bytes] = {}
_tables: dict[CodeType, list[Any]] = {}


def _name(code: CodeType, at: int) -> str:
    known = _codes.get(code)
    if known is None:
        known = _codes[code] = code.co_code
    return dis.opname[known[at]]


def _handler(code: CodeType, at: int) -> Any:
    """Where it goes on when an instruction raises."""
    known = _tables.get(code)
    if known is None:
        known = _tables[code] = dis._parse_exception_table(code)  # type: ignore[attr-defined] # pyright: ignore
    return next((entry.target for entry in known if entry.start <= at < entry.end), None)
