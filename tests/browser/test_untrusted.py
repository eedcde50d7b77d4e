"""A notebook that was saved with its outputs and is opened by somebody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rxbus import EventBus

from . import hostile

if TYPE_CHECKING:
    from .conftest import NewPage, Picture
    from .lab import Lab

INLINE = {"text/html": "<p>kept</p><svg id='inline'></svg><script>alert(0)</script>"}


def test_marbles_and_tables_show_without_trust(lab: Lab, new_page: NewPage, picture: Picture) -> None:
    from IPython.core.formatters import DisplayFormatter
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    from playwright.sync_api import expect

    with EventBus() as bus, bus.record() as recording:
        bus.subscribe("prices.>", name=hostile.NAME).subscribe(lambda event: None)
        for number in range(5):
            bus.publish("prices.eur", number)
            bus.publish(hostile.TOPIC, hostile.PAYLOAD)
        format = DisplayFormatter().format
        shown = [INLINE, *(format(thing)[0] for thing in (recording, bus, bus.topic("prices.eur")))]
    outputs = [new_output("display_data", data) for data in shown]
    cells = [new_code_cell("...", outputs=[output], execution_count=1) for output in outputs]

    page = new_page()
    notebook = lab.open(page, new_notebook(cells=cells))
    expect(notebook.output(0)).to_have_text("kept")  # what is stripped is stripped: it is not trusted
    assert notebook.output(0).locator("svg").count() == 0
    for scheme in ("light", "dark"):
        notebook.wear(scheme)
        picture(page, scheme)
    image = notebook.output(1).get_by_role("img", name="Marble diagram")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    for index in (1, 2):
        expect(notebook.output(index)).to_contain_text(hostile.TOPIC)
    expect(notebook.output(3)).to_contain_text(hostile.NAME.replace("\u202e", "\\u202e"))
