"""JupyterLab as these tests start it, and its notebooks as they use them."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from playwright.sync_api import Locator, Page

PATIENCE = 60.0  # seconds until the server listens, and until it has ended
SERVER = Path(__file__).with_name("server.py")
OPTIONS = (  # nothing is asked of the network, nor of whoever runs the tests
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.open_browser=False",
    "--ServerApp.allow_root=True",  # as containers do
    "--LabApp.extension_manager=readonly",
)
SETTINGS = {
    "themes": {"adaptive-theme": True},  # dark where the browser asks for that
    "notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Lab:
    """A server that runs, with a root directory of its own."""

    def __init__(self, root: Path, address: str, token: str) -> None:
        self._root = root
        self._address = address
        self._token = token

    def open(self, page: Page, notebook: NotebookNode | list[str]) -> Notebook:
        """Opens a notebook, or one of these cells; it is not trusted. Its kernel listens when this returns."""
        import nbformat
        from nbformat.v4 import new_code_cell, new_notebook

        if isinstance(notebook, list):
            notebook = new_notebook(cells=[new_code_cell(source) for source in notebook])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        name = secrets.token_hex(4)
        nbformat.write(notebook, self._root / f"{name}.ipynb")
        page.goto(f"{self._address}/lab/workspaces/{name}/tree/{name}.ipynb?token={self._token}")
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # not so before there is a connection
        return Notebook(page)


class Notebook:
    """A notebook that is open in JupyterLab, alone."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.cells = page.locator(".jp-Notebook .jp-CodeCell")

    def output(self, index: int) -> Locator:
        """What a code cell shows."""
        return self.cells.nth(index).locator(".jp-OutputArea-output")

    def wear(self, scheme: Literal["light", "dark"]) -> None:
        """Has JupyterLab wear its light or dark theme."""
        from playwright.sync_api import expect

        self.page.emulate_media(color_scheme=scheme)
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-light", str(scheme == "light").lower())
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def run(self, index: int, edit: str = "") -> None:
        """Runs a cell, with something appended to its code."""
        self.cells.nth(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+End")
        self.page.keyboard.insert_text(edit)
        self.page.keyboard.press("Control+Enter")


@contextmanager
def running(directory: Path) -> Iterator[Lab]:
    """Starts JupyterLab on a free port of the loopback interface; ends it and its kernels afterwards."""
    root, settings, token = directory / "root", directory / "settings", secrets.token_hex(16)
    root.mkdir()
    extension = settings / "@jupyterlab" / "apputils-extension"
    extension.mkdir(parents=True)
    for name, values in SETTINGS.items():
        (extension / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    homes = {f"JUPYTER_{name}_DIR": str(directory / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    homes |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(directory / "workspaces")}
    with subprocess.Popen(
        [sys.executable, SERVER, *OPTIONS, f"--ServerApp.root_dir={root}", f"--ServerApp.port={_free_port()}"],
        env={**os.environ, **homes, "IPYTHONDIR": str(directory / "ipython"), "JUPYTER_TOKEN": token},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        listens: Future[str] = Future()
        reader = threading.Thread(target=_read, args=(server.stderr, listens), daemon=True)
        reader.start()
        try:
            yield Lab(root, listens.result(PATIENCE), token)
            server.stdin.close()
            server.wait(PATIENCE)
        finally:
            server.kill()
            reader.join()


def _read(lines: IO[str], listens: Future[str]) -> None:
    """Reads to the end, lest the server waits for a reader; tells where it listens, or why it does not."""
    log = []
    for line in lines:
        log.append(line)
        found = ADDRESS.search(line)
        if found and not listens.done():
            listens.set_result(found[0])
    if not listens.done():
        listens.set_exception(AssertionError("".join(log)))


def _free_port() -> int:
    """A port that is free now; where it is taken meanwhile, the server takes another one, and tells."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
