"""A browser and JupyterLab, shared by these tests; each test has pages of its own, with fresh cookies and storage.

They need the extra `browser`, and the system's Chromium. Where one is missing they are skipped; with RXBUS_BROWSER=1 in
the environment, as CI has it, they fail. Pictures of what they see go to the directory that RXBUS_PICTURES names.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import lab as jupyter

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

    from .lab import Lab

PATIENCE = 30_000  # milliseconds that anything in a page may take

SWITCHES = (  # nothing that the browser does of itself, and no other host
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
HERE = re.compile(r"((http|ws)://127\.0\.0\.1:\d+/|file:///|data:|blob:)")

NewPage = Callable[[], "Page"]
Picture = Callable[["Page | Locator", str], None]


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The system's own Chromium, with a profile of its own."""
    for module in ("playwright", "jupyterlab"):
        if find_spec(module) is None:
            _lacks(f"{module} is not installed: pip install 'rxbus[browser]'")
    path = shutil.which("chromium")
    if path is None:
        _lacks("there is no chromium: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=SWITCHES) as browser,
    ):
        yield browser


def _lacks(reason: str) -> None:
    (pytest.fail if os.environ.get("RXBUS_BROWSER") else pytest.skip)(reason)


@pytest.fixture(scope="package")
def lab(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab; the browser comes first, as there is nothing to start where it is missing."""
    with jupyter.running(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def new_page(chromium: Browser) -> Iterator[NewPage]:
    """Opens pages. The test fails on whatever they complain of, on dialogs, and when another host has been asked."""
    troubles: list[str] = []
    contexts: list[BrowserContext] = []

    def note(message: Any) -> None:
        if message.type == "error":
            troubles.append(f"told the console: {message.text} ({message.location['url']})")

    def look(request: Any) -> None:
        if not HERE.match(request.url):
            troubles.append(f"asked for {request.url}")

    def dismiss(dialog: Any) -> None:
        troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def new_page() -> Page:
        context = chromium.new_context(viewport={"width": 1300, "height": 1000})
        context.set_default_timeout(PATIENCE)
        context.on("console", note)
        context.on("weberror", lambda error: troubles.append(f"raised: {error.error}"))
        context.on("request", look)
        context.on("dialog", dismiss)
        contexts.append(context)
        page = context.new_page()
        page.on("websocket", look)
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Picture:
    """Takes a picture of a page or of something in it, for people to look at, where they have asked for it."""
    directory = os.environ.get("RXBUS_PICTURES")

    def take(seen: Page | Locator, name: str) -> None:
        if directory:
            seen.screenshot(path=Path(directory) / f"{request.node.name}-{name}.png")

    return take
