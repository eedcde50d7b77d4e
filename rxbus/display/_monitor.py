"""`bus.monitor()`: a widget for notebooks that shows a bus's topics, and lets its user look closer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec

from rxbus import EventBus, Topic
from rxbus.display._live import Live, require
from rxbus.display._meter import Frame, Selection

if TYPE_CHECKING:
    from anywidget import AnyWidget


class Monitor(Live):
    """A widget that shows what `bus.top()` does, with a sparkline of each topic's rate in the last minute.

    It is shown where a notebook's cell ends with it, as often as that is done; all of them move together. Its user can
    pause it, filter topics by what their names contain, and choose some to be shown alone; so can the program, by the
    attributes. While a cell keeps the kernel busy, filter and choice hold among the topics that are there, up to a
    hundred, the liveliest; the kernel looks among all.

    """

    kind: ClassVar[str] = "monitor"

    def __init__(self, bus: EventBus) -> None:
        require("jupyter", "bus.monitor()", "anywidget", "hdrh.histogram")
        super().__init__(bus)
        self._widget: Any = _widget_class()()
        self._since = self._now = time()  # when the bus was looked at, before and now

    @property
    def widget(self) -> AnyWidget:
        """The widget itself, to be put into others of ipywidgets."""
        return cast("AnyWidget", self._widget)

    @property
    def paused(self) -> bool:
        """Whether it stands still; nothing is measured then but what the bus itself counts."""
        return bool(self._widget.paused)

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._widget.paused = paused

    @property
    def filter(self) -> str:
        """What the names of the topics that are shown contain."""
        return str(self._widget.text)

    @filter.setter
    def filter(self, text: str) -> None:
        self._widget.text = text

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that are shown alone; none stands for all."""
        return tuple(self._widget.chosen) if self._widget.only_chosen else ()

    @topics.setter
    def topics(self, topics: Iterable[str | Topic[Any]]) -> None:
        self._widget.chosen = [str(topic) for topic in topics]
        self._widget.only_chosen = bool(self._widget.chosen)

    def _tick(self, draw: Callable[[Frame], None], always: bool = False) -> None:
        if always or not self.paused:
            self._since, self._now = self._now, time()
            super()._tick(draw, always)

    def _selection(self) -> Selection:
        return Selection(text=self.filter, topics=self.topics)

    def _begin(self, frame: Frame) -> None:
        self._send(frame, running=True)

    def _draw(self, frame: Frame) -> None:
        self._send(frame, running=True)

    def _close(self, frame: Frame) -> None:
        self._send(frame, running=False)

    def _send(self, frame: Frame, running: bool) -> None:
        told = msgspec.to_builtins(frame)
        self._widget.frame = {**told, "since": self._since, "time": self._now, "running": running}

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = self._widget._repr_mimebundle_(**options)
        assert bundle is not None
        data, metadata = bundle
        return {**data, "text/plain": repr(self)}, metadata

    def __repr__(self) -> str:
        return f"<Monitor, {'running' if self.running else 'stopped'}>"


def monitor(bus: EventBus) -> Monitor:
    """Gives the widget of a bus; see `EventBus.monitor`."""
    return Monitor.of(bus)


@cache
def _widget_class() -> type[AnyWidget]:
    """Made when it is asked for, since what it derives from belongs to an extra."""
    import anywidget
    import traitlets

    here = files("rxbus.display")

    class MonitorWidget(anywidget.AnyWidget):
        """What is shared with the browser."""

        _esm = here.joinpath("monitor.js").read_text("utf-8")
        _css = here.joinpath("monitor.css").read_text("utf-8")
        frame = traitlets.Dict().tag(sync=True)
        paused = traitlets.Bool(False).tag(sync=True)
        text = traitlets.Unicode("").tag(sync=True)
        chosen = traitlets.List(traitlets.Unicode()).tag(sync=True)
        only_chosen = traitlets.Bool(False).tag(sync=True)

    return MonitorWidget
