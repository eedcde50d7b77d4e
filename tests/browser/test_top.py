"""`bus.top()` in JupyterLab."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import NewPage, Picture
    from .lab import Lab

LONG_NAMES = """
from rxbus import EventBus

bus = EventBus()
bus.subscribe("x" * 200, name="y" * 200).subscribe(lambda event: None)
bus.publish("x" * 200)
bus.publish("a.topic.of.the.usual.length")
bus.top()
""".strip()


def test_long_names_make_the_table_no_wider_than_its_cell(lab: Lab, new_page: NewPage, picture: Picture) -> None:
    from playwright.sync_api import expect

    notebook = lab.open(new_page(), [LONG_NAMES, "bus.close()"])
    notebook.run(0)
    table = notebook.output(0).locator("table.rxbus-top")
    expect(table.locator("tbody tr")).to_have_count(2)
    notebook.run(1)
    picture(table, "table")
    assert notebook.output(0).evaluate("output => output.scrollWidth - output.clientWidth") == 0
    assert table.evaluate("table => table.offsetWidth - table.parentElement.clientWidth") <= 0
