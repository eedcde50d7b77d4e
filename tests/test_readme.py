"""The README's snippets run, each of them after those before it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text("utf-8")
EVENTS = TEXT[TEXT.index("\n## See the events") : TEXT.index("\n## Pipelines")]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


SNIPPETS = blocks("python", TEXT)
COMMANDS = blocks("sh", TEXT)


def test_snippets(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(SNIPPETS, 1):
        exec(compile(snippet, f"README, snippet {number}", "exec"), names)
    assert len(SNIPPETS) >= 7
    assert capsys.readouterr().out.startswith("101.5\n")


@pytest.mark.parametrize("snippet", blocks("python", EVENTS))
def test_snippets_that_stand_on_their_own(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README", "exec"), {})


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    assert "rxbus demo --seconds" in COMMANDS[0]
    assert COMMANDS[1].rstrip().endswith("-m pytest")
