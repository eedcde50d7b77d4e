"""`bus.monitor()`: what its widget is sent and told, in a kernel too, and what its files promise."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from rxbus import BusClosed, EventBus, Topic
from rxbus.display import Monitor, _live, _top
from rxbus.errors import MissingExtra

PATIENCE = 10.0

pytestmark = pytest.mark.filterwarnings("default")  # of Jupyter's own


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "PERIOD", 0.001)
    monkeypatch.setattr(_live, "thread_time", lambda: 0.0)


def topics(frame: dict[str, Any]) -> list[str]:
    return [row["topic"] for row in frame["rows"]]


def wait_for(monitor: Monitor, what: Callable[[dict[str, Any]], bool]) -> None:
    """Returns when a frame has come of which something holds."""
    come = threading.Event()

    def look(change: Any) -> None:
        if what(change["new"]):
            come.set()

    monitor.widget.observe(look, "frame")
    if what(monitor.widget.frame):
        come.set()
    assert come.wait(PATIENCE)


class TestMonitor:
    def test_from_begin_to_end(self, bus: EventBus) -> None:
        bus.publish("a")
        monitor = bus.monitor()
        assert isinstance(monitor, Monitor)
        assert bus.monitor() is monitor
        assert repr(monitor) == "<Monitor, running>"
        assert (topics(monitor.widget.frame), monitor.widget.frame["running"]) == (["a"], True)
        bus.publish("b.<b")
        wait_for(monitor, lambda frame: topics(frame) == ["a", "b.<b"])
        bus.close()
        last = monitor.widget.frame
        assert (topics(last), last["hidden"], last["running"]) == (["a", "b.<b"], 0, False)
        assert last["rows"][0]["events"] == 1
        assert json.dumps(last)
        assert repr(monitor) == "<Monitor, stopped>"
        with pytest.raises(BusClosed):
            bus.monitor()

    def test_frames_tell_since_when(self, bus: EventBus) -> None:
        monitor = bus.monitor()
        times = []
        monitor.widget.observe(lambda change: times.append((change["new"]["since"], change["new"]["time"])), "frame")
        for _ in range(3):
            bus.publish("a")
            monitor._tick(monitor._draw)
        monitor.stop()
        assert all(since <= now for since, now in times)
        assert all(now <= since for (_, now), (since, _) in itertools.pairwise(times))

    def test_top_and_monitor_at_once(self, bus: EventBus, capsys: pytest.CaptureFixture[str]) -> None:
        top, monitor = bus.top(), bus.monitor()
        bus.publish("a")
        monitor.stop()
        assert top.running
        bus.close()
        assert topics(monitor.widget.frame) == ["a"]
        assert capsys.readouterr().out.splitlines()[1].startswith("a ")

    def test_paused_it_is_sent_nothing(self, bus: EventBus) -> None:
        monitor = bus.monitor()
        monitor.paused = True
        assert monitor.paused
        bus.publish("a")
        monitor._tick(monitor._draw)
        assert topics(monitor.widget.frame) == []
        monitor.paused = False
        wait_for(monitor, lambda frame: topics(frame) == ["a"])
        monitor.paused = True
        bus.publish("b")
        monitor.stop()
        assert topics(monitor.widget.frame) == ["a", "b"]  # the last one is shown, whatever

    def test_filter_and_choice(self, bus: EventBus) -> None:
        for topic in ("a.x", "b.x", "b.y"):
            bus.publish(topic)
        monitor = bus.monitor()
        assert (monitor.filter, monitor.topics) == ("", ())
        monitor.filter = "x"
        wait_for(monitor, lambda frame: topics(frame) == ["a.x", "b.x"])
        monitor.topics = [Topic("b.x"), "b.y"]
        assert monitor.topics == ("b.x", "b.y")
        wait_for(monitor, lambda frame: topics(frame) == ["b.x"])
        monitor.filter = ""
        monitor.topics = []
        assert monitor.topics == ()
        wait_for(monitor, lambda frame: topics(frame) == ["a.x", "b.x", "b.y"])

    def test_the_browser_chooses(self, bus: EventBus) -> None:
        for topic in "ab":
            bus.publish(topic)
        monitor = bus.monitor()
        monitor.widget.set_state({"chosen": ["b"], "text": "", "paused": False})
        assert monitor.topics == ()  # marked, but the others are shown, too
        monitor.widget.set_state({"only_chosen": True})
        assert monitor.topics == ("b",)
        wait_for(monitor, lambda frame: topics(frame) == ["b"])

    def test_what_a_cell_shows(self, bus: EventBus) -> None:
        data, _ = bus.monitor()._repr_mimebundle_()
        assert data["text/plain"] == "<Monitor, running>"
        assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == bus.monitor().widget.model_id

    def test_without_the_extra(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "anywidget", None)
        with pytest.raises(MissingExtra, match=r"bus\.monitor\(\) needs the extra 'jupyter'"):
            bus.monitor()


class TestFiles:
    def test_they_ask_nobody_and_set_no_markup(self) -> None:
        for name in ("monitor.js", "monitor.css"):
            text = files("rxbus.display").joinpath(name).read_text("utf-8")
            assert re.findall(r"https?://[^\"]*", text.replace("http://www.w3.org/2000/svg", "")) == []
            for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "@import", "import ", "eval("):
                assert forbidden not in text, (name, forbidden)

    @pytest.mark.skipif(shutil.which("node") is None, reason="it needs Node.js")
    def test_the_script_can_be_read(self, tmp_path: Path) -> None:
        copy = tmp_path / "monitor.mjs"
        copy.write_text(files("rxbus.display").joinpath("monitor.js").read_text("utf-8"), "utf-8")
        done = subprocess.run(["node", "--check", str(copy)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


CELLS = [
    "from rxbus import EventBus\nbus = EventBus()\nbus.publish('a')\nbus.top()",
    "bus.monitor()",
    "import threading\nnow = threading.Event()\nbus.publish('a')\nnow.wait(1.0)",  # a few frames of the real pace
    "bus.publish('b')\nbus.close()\nprint([t.name for t in threading.enumerate() if t.name.startswith('rxbus')])",
]


@pytest.mark.skipif(os.name != "posix", reason="as the other tests that run notebooks")
def test_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(notebook, timeout=100, kernel_name="python3", store_widget_state=True)
    client.execute()
    first, second, _, last = notebook.cells
    (table,) = first.outputs
    lines = table.data["text/plain"].splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "2"], ["b", "1"]]  # it came from other cells
    assert 'data-topic="b"' in table.data["text/html"]
    (widget,) = second.outputs
    model = widget.data["application/vnd.jupyter.widget-view+json"]["model_id"]
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"][model]["state"]
    assert [(row["topic"], row["events"]) for row in state["frame"]["rows"]] == [("a", 2), ("b", 1)]
    assert state["frame"]["running"] is False
    assert [output.text for output in last.outputs] == ["[]\n"]
    assert _top.running_shell() is None  # that was another process
