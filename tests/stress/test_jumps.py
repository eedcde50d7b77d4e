"""No loop stands where Ctrl-C would strike outside of the `try` or `with` that it is in: see `ledger` in `_fan_out`.

No test can strike there: a tracer raises at the next instruction. So this one looks at what the compiler has made.
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import rxbus

MODULES = sorted(Path(rxbus.__file__).parent.glob("*.py"))

ALLOWED = {
    "Clock._run": "runs on a thread of its own, which no signal strikes",
    "Source.__aiter__": "in a coroutine: on Ctrl-C its event loop cancels it",
    "VirtualTime.wait_async": "likewise",
    "run": "the demo's: it takes note of signals, none is raised",
}


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object, and all that are in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def guarded(tree: ast.AST) -> list[range]:
    """The lines of each block after which something is given back, whatever happens in it."""
    blocks = [
        node.body
        for node in ast.walk(tree)
        if isinstance(node, ast.With | ast.AsyncWith) or (isinstance(node, ast.Try) and catches_all(node))
    ]
    return [range(block[0].lineno, (block[-1].end_lineno or 0) + 1) for block in blocks]


def catches_all(node: ast.Try) -> bool:
    return bool(node.finalbody) or any(
        isinstance(handler.type, ast.Name) and handler.type.id == "BaseException" for handler in node.handlers
    )


def uncovered(code: CodeType) -> Iterator[int]:
    """The lines of the jumps back that no handler covers."""
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined] # pyright: ignore
    for found in dis.get_instructions(code):
        if found.opname.startswith("JUMP_BACKWARD") and found.opname != "JUMP_BACKWARD_NO_INTERRUPT":
            line = found.positions.lineno if found.positions else None
            if line and not any(entry.start <= found.offset < entry.end for entry in entries):
                yield line


def exposed(source: str) -> set[str]:
    """The functions with a loop of which a jump back is not covered, though it is in a guarded block."""
    blocks = guarded(ast.parse(source))
    return {
        code.co_qualname
        for code in codes(compile(source, "a module", "exec"))
        for line in uncovered(code)
        if any(line in block and block.start > code.co_firstlineno for block in blocks)
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_loops_are_covered(module: Path) -> None:
    assert exposed(module.read_text()) <= ALLOWED.keys()


def test_a_jump_that_is_not_covered_is_found() -> None:
    source = "def f(lock, more):\n    with lock:\n        while more():\n            pass\n        more()\n"
    assert exposed(source) == ({"f"} if sys.version_info >= (3, 12) else set())
