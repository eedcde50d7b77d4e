"""The README's snippets run, each of them after those before it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_snippets(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(SNIPPETS, 1):
        exec(compile(snippet, f"README, snippet {number}", "exec"), names)
    assert len(SNIPPETS) >= 7
    assert capsys.readouterr().out.startswith("101.5\n")


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    assert "rxbus demo --seconds" in COMMANDS[0]
    assert COMMANDS[1].rstrip().endswith("-m pytest")
