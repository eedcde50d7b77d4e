"""The page that `rxbus report` makes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from rxbus import Event, EventBus, PublishError

from . import hostile
from .legible import illegible

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import NewPage, Picture


def test_it_opens_from_a_file_and_runs_nothing(new_page: NewPage, tmp_path: Path, picture: Picture) -> None:
    from playwright.sync_api import expect

    page = new_page()
    page.goto(make_report(tmp_path).as_uri())
    for heading in ("Marbles", "Topics", "Slowest observers", "Failures", "What led to what"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    for text in (hostile.TOPIC, "<script>alert(2)</script>", "<script>alert(3)</script>"):
        expect(page.get_by_text(text).filter(visible=True).first).to_be_visible()
    assert page.locator("script, img[src='x']").count() == 0
    assert page.get_by_role("img", name="Marble diagram").evaluate("image => image.naturalWidth") > 0
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert "\u202e" not in page.locator("body").inner_text()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        picture(page.locator("main"), scheme)
        assert illegible(page.locator("body")) == []
    page.set_viewport_size({"width": 400, "height": 800})
    picture(page, "narrow")
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def make_report(directory: Path) -> Path:
    """Records a bus with hostile names and payloads; makes the page by the terminal's command."""
    with EventBus() as bus, bus.record() as recording:

        def pass_on(event: Event[str]) -> None:
            bus.publish("prices.eur", event.payload)

        def refuse(event: Event[str]) -> None:
            raise ValueError(event.payload)

        bus.subscribe(hostile.TOPIC, name=hostile.NAME).subscribe(pass_on)
        bus.subscribe("prices.eur", name="ledger").subscribe(refuse)
        for _ in range(20):
            with suppress(PublishError):
                bus.publish(hostile.TOPIC, hostile.PAYLOAD)
    recorded, page = directory / "made.rec", directory / "report.html"
    recording.save(recorded)
    subprocess.run([sys.executable, "-m", "rxbus", "report", recorded, "-o", page], check=True, capture_output=True)
    return page
