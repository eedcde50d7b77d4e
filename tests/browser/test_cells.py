"""`bus.cell()` in JupyterLab, which tells a cell's id."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import NewPage
    from .lab import Lab

ATTACH = "with bus.cell():\n    bus.subscribe('a').subscribe(print)"
CELLS = ["from rxbus import EventBus\nbus = EventBus()", ATTACH, ATTACH, "bus.statistics().observers"]


def test_a_cell_that_runs_again_replaces_its_own_observers_alone(lab: Lab, new_page: NewPage) -> None:
    """Also when its code has changed; and not those of another cell with the same code."""
    from playwright.sync_api import expect

    notebook = lab.open(new_page(), CELLS)
    for index in range(4):
        notebook.run(index)
    expect(notebook.output(3)).to_have_text("2")
    for edit in ("", "  # changed", "\n    bus.subscribe('b').subscribe(print)"):
        notebook.run(1, edit)
    notebook.run(3, "  # in two cells")
    expect(notebook.output(3)).to_have_text("3")
