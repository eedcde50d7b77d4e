"""The README's snippets run: each of them after those before it, and in "See the events" each by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


SNIPPETS = blocks("python")
COMMANDS = blocks("sh")
BY_THEMSELVES = blocks("python", README.partition("\n## See the events\n")[2].partition("\n## ")[0])


def test_snippets(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(SNIPPETS, 1):
        exec(compile(snippet, f"README, snippet {number}", "exec"), names)
    assert len(SNIPPETS) >= 7
    assert capsys.readouterr().out.startswith("101.5\n")


@pytest.mark.parametrize("snippet", BY_THEMSELVES)
def test_snippets_that_run_by_themselves(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README", "exec"), {})


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    assert "rxbus demo --seconds" in COMMANDS[0]
    assert COMMANDS[1].rstrip().endswith("-m pytest")
