"""`bus.monitor()` in JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import hostile
from .legible import illegible

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from .conftest import NewPage, Picture
    from .lab import Lab

WATCHING = Path(__file__).parents[2] / "notebooks" / "4-watching-live.ipynb"
CELLS = [
    f"""
import threading
from rxbus import EventBus

bus = EventBus()
bus.subscribe("prices.>", name="ledger").subscribe(lambda event: None)
bus.subscribe("weather.oslo", name={hostile.NAME!r}).subscribe(lambda event: None)
bus.subscribe("prices.usd", name="broken").subscribe(lambda event: 1 / (event.payload % 10))
stop = threading.Event()

def feed():
    number = 0
    while not stop.wait(0.02):
        number += 1
        for topic in ("prices.eur", "prices.usd", "weather.oslo", {hostile.TOPIC!r}):
            try:
                bus.publish(topic, number)
            except ExceptionGroup:
                pass

thread = threading.Thread(target=feed)
thread.start()
""".strip(),
    "bus.top()",
    "bus.monitor()",
    "stop.set()\nthread.join()\nbus.close()\nbus.statistics().published",
]


def test_it_moves_pauses_filters_chooses_and_ends(lab: Lab, new_page: NewPage, picture: Picture) -> None:
    from playwright.sync_api import expect

    page = new_page()
    notebook = lab.open(page, CELLS)
    for index in range(3):
        notebook.run(index)
    monitor = Monitor(page)
    expect(monitor.rows).to_have_count(4)

    for column in ("events", "rate", "p50_ms", "p99_ms"):
        expect(monitor.cell("prices.eur", column)).not_to_have_text("")
    expect(monitor.cell("prices.usd", "failures")).not_to_have_text("0")
    expect(monitor.cell(hostile.TOPIC, "topic")).to_have_text(hostile.TOPIC)
    expect(monitor.cell("weather.oslo", "slowest")).to_contain_text(hostile.NAME.replace("\u202e", "\ufffd"))
    monitor.until_it_moves("prices.eur")
    assert page.locator(".jp-OutputArea img[src='x']").count() == 0

    for scheme in ("light", "dark"):
        notebook.wear(scheme)
        picture(page, scheme)
        assert illegible(monitor.root) == []

    monitor.pause.click()
    expect(monitor.root).to_have_attribute("data-state", "paused")
    standing = monitor.events("prices.eur")
    top = page.locator(".rxbus-top tr").filter(has_text="prices.eur").locator("td").nth(1)
    for _ in range(3):  # what is not paused goes on meanwhile
        expect(top).not_to_have_text(top.inner_text())
    assert monitor.events("prices.eur") == standing
    monitor.pause.click()
    monitor.until_it_moves("prices.eur")

    monitor.filter.fill("prices")
    expect(monitor.rows).to_have_count(2)
    monitor.until_it_moves("prices.usd")
    monitor.filter.fill("")
    monitor.row("weather.oslo").get_by_role("checkbox").check()
    monitor.only.click()
    expect(monitor.rows).to_have_count(1)
    monitor.until_it_moves("weather.oslo")
    monitor.only.click()
    expect(monitor.rows).to_have_count(4)

    notebook.run(3)
    expect(monitor.root).to_have_attribute("data-state", "ended")
    published = int(notebook.output(3).inner_text())
    assert sum(monitor.events(topic) for topic in monitor.topics()) == published


def test_the_notebook_about_it_runs_through(lab: Lab, new_page: NewPage) -> None:
    import nbformat
    from playwright.sync_api import expect

    page = new_page()
    notebook = lab.open(page, nbformat.read(WATCHING, as_version=4))
    notebook.run_all()
    monitor = Monitor(page)
    expect(monitor.root).to_have_attribute("data-state", "ended")
    topics = monitor.topics()
    assert {topic.rpartition(".")[0] for topic in topics} == {"cpu"}  # the filter that it sets
    assert all(monitor.events(topic) > 0 for topic in topics)
    expect(notebook.output(notebook.cells.count() - 1).last).to_contain_text("EventBus closed")
    expect(page.locator("[data-mime-type$='.error'], [data-mime-type$='.stderr']")).to_have_text([])


class Monitor:
    """The widget, as it stands in a page."""

    def __init__(self, page: Page) -> None:
        self.root = page.locator(".rxbus-monitor")
        self.rows = self.root.locator("tbody tr")
        self.pause = self.root.locator(".rxbus-monitor-pause")
        self.filter = self.root.get_by_label("filter topics")
        self.only = self.root.get_by_role("button", name="only chosen")

    def topics(self) -> list[str]:
        return self.root.locator("td[data-column=topic]").all_inner_texts()

    def row(self, topic: str) -> Locator:
        return self.root.locator(f"tr[data-topic='{topic}']")

    def cell(self, topic: str, column: str) -> Locator:
        return self.row(topic).locator(f"td[data-column={column}]")

    def events(self, topic: str) -> int:
        return int(self.cell(topic, "events").inner_text().replace(",", ""))

    def until_it_moves(self, topic: str) -> None:
        """Waits until a number has changed twice."""
        from playwright.sync_api import expect

        for _ in range(2):
            cell = self.cell(topic, "events")
            expect(cell).not_to_have_text(cell.inner_text())
