"""Marble diagrams of recordings, for notebooks and for terminals."""

from __future__ import annotations

from base64 import b64encode
from functools import cached_property
from html import escape
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from rxbus.display._axis import duration
from rxbus.display._diagram import diagram
from rxbus.display._picture import Picture
from rxbus.display._timeline import Timeline
from rxbus.errors import InvalidArgument

if TYPE_CHECKING:
    from rxbus.recording import Recording

MIN_WIDTH, MAX_WIDTH = 320, 4096


class Marbles:
    """A marble diagram: what a recording held when it was made; see `marbles`.

    A notebook shows it as a picture, a terminal as text: `print(marbles)`, or `marbles.text(width)`.
    """

    def __init__(self, timeline: Timeline, width: int) -> None:
        self._timeline = timeline
        self._width = width

    @cached_property
    def svg(self) -> str:
        """The picture as one `<svg>` element that refers to nothing outside of it."""
        return Picture(self._timeline, self._width).draw(self.title)

    @property
    def title(self) -> str:
        """What is seen, in a line."""
        timeline = self._timeline
        topics, stages = timeline.topic_count, timeline.stage_count
        parts = [f"{_several(len(timeline.events), 'event')} on {_several(topics, 'topic')}"]
        parts += [_several(stages, "stage")] * bool(stages)
        parts += [f"in {duration(timeline.end - timeline.start)}"] * (timeline.end > timeline.start)
        parts += [f"{timeline.failed:,} failed"] * bool(timeline.failed)
        parts += [f"{timeline.dropped:,} earlier ones dropped"] * bool(timeline.dropped)
        return ", ".join(parts)

    def text(self, width: int | None = None) -> str:
        """Gives the diagram as text, a line per lane.

        Args:
            width: Of a line, in columns; by default the terminal's.
        """
        return diagram(self._timeline, self.title, width or get_terminal_size().columns)

    def _repr_html_(self) -> str:
        # An <img>, as an untrusted notebook strips inline SVG.
        data = b64encode(self.svg.encode()).decode()
        alt = escape(f"Marble diagram: {self.title}")
        style = "max-width:100%;height:auto"
        return f'<img src="data:image/svg+xml;base64,{data}" alt="{alt}" width="{self._width}" style="{style}">'

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def marbles(
    recording: Recording,
    *,
    width: int = 800,
    start: float | None = None,
    end: float | None = None,
    max_lanes: int = 24,
) -> Marbles:
    """Draws a recording as a marble diagram: a lane per topic, and per stage that `operators.tap` has marked.

    Time runs to the right. An event is a marble in its topic's colour and shape, with its payload where there is room;
    what passed a stage has the colour of the topic whose event was being delivered. Where there is no room for single
    marbles, pills tell how many they stand for.

    Args:
        recording: What to draw, as it is now.
        width: Of the picture, in pixels, from 320 to 4096.
        start: Where to begin, in seconds since the recording began; by default with the first event.
        end: Where to end; by default with the last event.
        max_lanes: How many lanes there are at the most; topics and stages with few events share the last one.

    Raises:
        InvalidArgument: One of the numbers cannot be meant.
    """
    if not isinstance(width, int) or not MIN_WIDTH <= width <= MAX_WIDTH:
        raise InvalidArgument(f"width is a number of pixels from {MIN_WIDTH} to {MAX_WIDTH}, not {width!r}")
    if not isinstance(max_lanes, int) or max_lanes < 1:
        raise InvalidArgument(f"max_lanes is at least 1, not {max_lanes!r}")
    if start is not None and end is not None and not start < end:
        raise InvalidArgument(f"start is before end, but {start!r} is not before {end!r}")
    return Marbles(Timeline(recording, start, end, max_lanes), width)


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
