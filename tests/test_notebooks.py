"""The notebooks are kept without outputs; what handlers print in them shows in the right place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_they_are_among_the_tests(pytestconfig: pytest.Config) -> None:
    """nbmake executes them, each as a test of its own."""
    assert len(NOTEBOOKS) >= 7
    assert pytestconfig.getoption("nbmake")
    assert "notebooks" in pytestconfig.getini("testpaths")


CELLS = """
import time
from rxbus import EventBus
bus = EventBus()
def slow(event):
    time.sleep(0.002)
    print(f"slow {event.payload}\\n", end="")  # at once: print writes the end of the line by itself
with bus.cell("handlers"):
    for _ in range(3):
        bus.subscribe("a").subscribe(slow)
    @bus.on("a")
    async def coroutine(event):
        print(f"async {event.payload}\\n", end="")
#
receipt = await bus.publish_async("a", 1)
#
receipt = await bus.publish_async("a", 2)
#
bus.close()
"""


@pytest.mark.filterwarnings("default")
def test_what_handlers_print_shows_where_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whichever thread they run, and wherever that was started: they see the publisher's context variables."""
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = new_notebook(cells=[new_code_cell(source.strip()) for source in CELLS.split("#\n")])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = ["".join(output.text for output in cell.outputs).split("\n") for cell in notebook.cells]
    assert [sorted(lines) for lines in shown] == [
        [""],
        ["", "async 1", *["slow 1"] * 3],
        ["", "async 2", *["slow 2"] * 3],
        [""],
    ]


NAMES = """
from rxbus import EventBus
from rxbus.operators import tap
def archive(event): pass
#
bus = EventBus()
bus.subscribe("a").subscribe(archive)
#
pass
bus.subscribe("b").pipe(tap("seen")).subscribe(archive)
#
print(*bus.topics["a"].observer_names, *bus.topics["b"].observer_names, sep=", ")
bus.close()
"""


@pytest.mark.filterwarnings("default")
def test_observers_are_called_by_the_cell_that_attached_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = new_notebook(cells=[new_code_cell(source.rstrip()) for source in NAMES.split("#\n")])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert notebook.cells[-1].outputs[0].text == "archive (In[2]:2), archive (In[3]:2)\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
