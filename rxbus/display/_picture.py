"""A recording's timeline drawn as a marble diagram, as SVG."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from html import escape
from itertools import zip_longest
from math import isfinite
from typing import Any

from rxbus import Event
from rxbus._short import Shortener, plain
from rxbus.display import _svg as svg
from rxbus.display._axis import duration, ticks
from rxbus.display._text import fit_pixels, pixels, telling
from rxbus.display._timeline import Lane, Limits, Mark, Timeline, merge

MARGIN = 14
TITLE = 38  # the height of what stands above the lanes
LANE = 46
AXIS = 30
ROW = 20  # of the key
PAD = 24  # between a lane's ends and the first and last moment
SLOT = 64  # how wide a pill becomes
BOLD = 1.17  # how much wider bold text is
GAP = 1.5  # what stays free around a mark
LARGE, SMALL = 11, 8  # marbles that hold their label, and that have it above
SKYLINE = 8  # fewer show no shape
MAX_LARGE = 200
LABEL = 130  # how wide a label becomes
SPACE = 4  # between labels
MIN_LINKS = 60  # so many lines from causes to effects are drawn in any case
LINK = 1500  # square pixels; with less for each, more lines would be a thicket


_Place = tuple[float, float, float]  # where a marble stands, and how large it is
_Link = tuple[_Place, _Place, str]  # from where to where, and what it tells: see the key


@dataclass(slots=True)
class _Labelled:
    """Something on a lane: where it reaches from and to, and the label above it, if any."""

    x: float
    left: float
    right: float
    text: str = ""
    style: str = "ink"


class Picture:
    """Draws a timeline."""

    def __init__(self, timeline: Timeline, width: int) -> None:
        self._timeline = timeline
        self._width = width
        self._short = Shortener()
        self._lines: list[str] = []  # what is drawn below, and above
        self._marks: list[str] = []
        self._known: set[str] = set()  # what the key has to explain
        self._events: dict[int, _Place] = {}  # where single events stand, and how large
        self._links: list[_Link] = []
        names = max((pixels(plain(lane.name), svg.FONT) + 8 * lane.is_stage for lane in timeline.lanes), default=0)
        self._left = MARGIN + 22 + min(names, width * 0.28) + 8  # where lanes begin
        self._right = width - MARGIN
        self._plot = int(self._right - self._left - 2 * PAD)
        self._bottom = TITLE + max(LANE * len(timeline.lanes), LANE)

    def draw(self, title: str) -> str:
        """Gives the SVG."""
        self._draw_axis()
        bins = [self._timeline.gather(lane, self._plot) for lane in self._timeline.lanes]
        large = self._hold_labels(bins)
        for number, (lane, marks) in enumerate(zip(self._timeline.lanes, bins, strict=True)):
            self._draw_lane(lane, TITLE + LANE * number + LANE * 0.6, marks, large)
        self._link_causes()
        links, heads = self._draw_links()
        if not self._timeline.lanes:
            middle = (self._left + self._right) / 2
            self._marks.append(svg.text(middle, TITLE + LANE * 0.6, "no events", "dim m"))
        key, height = self._draw_key()
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{svg.number(height)}"'
        # Labels have halos, which may hide a line's middle, but not where it leads to.
        body = "".join([*self._lines, *links, *self._marks, *heads, *key])
        since = f"0 is at {_clock(self._timeline.start)}" if self._timeline.end > self._timeline.start else ""
        since += f", {self._timeline.zero}" if self._timeline.zero else ""
        room = self._width - 3 * MARGIN - pixels(since, svg.SMALL)
        shown = svg.text(MARGIN, 23, fit_pixels(title, room / BOLD, svg.FONT), "ink b")
        shown += svg.text(self._right, 23, since, "dim e", svg.SMALL)
        return (
            f'{head} viewBox="0 0 {self._width} {svg.number(height)}" class="rxbus" role="img">'
            f"<title>{escape(title)}</title><style>{svg.STYLE}</style>"
            f"{svg.box(0.5, 0.5, self._width - 1, height - 1, 'card', 8)}{shown}{body}</svg>"
        )

    def _x(self, time: float) -> float:
        return self._left + PAD + self._timeline.place(time, self._plot)

    def _draw_axis(self) -> None:
        timeline, bottom = self._timeline, self._bottom + 6
        if not timeline.lanes:
            return
        if timeline.end > timeline.start:
            for moment, label in ticks(timeline.span, max(self._plot // 80, 2)):
                x = self._left + PAD + moment / timeline.span * self._plot
                self._lines.append(svg.line(x, TITLE, x, bottom, "grid"))
                self._marks.append(svg.text(x, bottom + 12, label, "dim m", svg.SMALL))

    def _hold_labels(self, bins: list[list[Mark]]) -> bool:
        """Whether marbles are drawn so large that they hold their labels: all are short, and not too many."""
        return sum(map(len, bins)) <= MAX_LARGE and all(
            pixels(self._label(lane, mark), svg.FONT) <= 2 * LARGE - 5
            for lane, marks in zip(self._timeline.lanes, bins, strict=True)
            for mark in marks
        )

    def _draw_lane(self, lane: Lane, y: float, bins: list[Mark], large: bool) -> None:
        self._name(lane, y)
        for one in bins:
            one.first = one.last = one.first + self._left + PAD
        radius = LARGE if large else SMALL
        limits = Limits(self._left + 2, self._right - 10, SLOT)
        marks = list(merge(bins, radius + GAP, _pill_width, limits))
        for mark in marks:
            if mark.count > 1:
                self._pill(mark, y, bins)
            else:
                self._marble(lane, mark, y, radius, large)
        singles = [
            _Labelled(_middle(mark), mark.left, mark.right, "" if large or mark.count > 1 else self._label(lane, mark))
            for mark in marks
        ]
        ends = list(self._draw_ends(lane, marks, y))
        self._draw_line(y, max((end.x for end in ends), default=0.0), max((mark.right for mark in marks), default=0.0))
        self._write_labels([*singles, *ends], y - radius - 8)

    def _draw_line(self, y: float, ended: float, last: float) -> None:
        """It goes on beyond the picture, unless the stage has ended and nothing came after."""
        if ended > last:
            self._lines.append(svg.line(self._left, y, ended, y, "line"))
            return
        self._lines.append(svg.line(self._left, y, self._right - 5, y, "line"))
        self._lines.append(svg.path(f"M{svg.number(self._right)} {svg.number(y)}l-7-4v8z", "tip"))

    def _name(self, lane: Lane, y: float) -> None:
        x = MARGIN + 8
        if lane.is_stage:
            x += 8
            self._marks.append(svg.path(f"M{MARGIN + 8} {svg.number(y - 9)}v9h7", "line f"))
        elif lane.hue is not None:
            self._marks.append(svg.marble(x, y, 6, lane.hue))
        name = fit_pixels(plain(lane.name), self._left - x - 18, svg.FONT)
        self._marks.append(svg.text(x + 12, y + 4, name, "dim" if lane.hue is None else "ink"))

    def _label(self, lane: Lane, mark: Mark) -> str:
        return lane.label(mark.index, self._short, 60) if mark.count == 1 else ""

    def _marble(self, lane: Lane, mark: Mark, y: float, radius: float, large: bool) -> None:
        x, item = _middle(mark), lane.items[mark.index]
        told = f"{lane.label(mark.index, self._short, 80)}, at {duration(_time_of(item) - self._timeline.start)}"
        inside = svg.text(x, y + 4, self._label(lane, mark), f"{svg.on(mark.hue)} m") if large else ""
        self._marks.append(f"<g><title>{escape(told)}</title>{svg.marble(x, y, radius, mark.hue)}{inside}</g>")
        if isinstance(item, Event):
            self._events[item.id] = x, y, radius
            if mark.failed:
                self._badge(x + radius * 0.8, y + radius * 0.8, "!")
        elif item.event in self._events:
            self._links.append((self._events[item.event], (x, y, radius), "passed"))

    def _pill(self, mark: Mark, y: float, bins: list[Mark]) -> None:
        self._known.add("pill")
        width = mark.right - mark.left - 2 * GAP
        if mark.count >= SKYLINE:
            self._known.add("sky")
            self._marks.append(svg.path(_skyline(mark, bins, y - 10), f"sky {svg.stroke(mark.hue)}"))
        self._marks.append(svg.box(mark.left + GAP, y - 9, width, 18, f"{svg.fill(mark.hue)} edge", 9))
        self._marks.append(svg.text(_middle(mark), y + 3.5, _counted(mark.count), f"{svg.on(mark.hue)} m", svg.SMALL))
        if mark.failed:
            self._badge(mark.right - 8, y + 12, f"!{_compact(mark.failed)}")

    def _badge(self, x: float, y: float, content: str) -> None:
        self._known.add("badge")
        width = max(pixels(content, svg.SMALL) * BOLD + 6, 11)
        self._marks.append(svg.box(x + 5.5 - width, y - 5.5, width, 11, "badge", 5.5))
        self._marks.append(svg.text(x + 5.5 - width / 2, y + 3.6, content, "o b m", svg.SMALL))

    def _draw_ends(self, lane: Lane, marks: list[Mark], y: float) -> Iterator[_Labelled]:
        drawn: set[tuple[float, bool]] = set()
        for time, error in lane.ends:
            x = self._x(time)
            for mark in marks:
                if mark.left - 5 < x < mark.right + 5:
                    x = min(mark.right + 6, self._right - 12)
            if (round(x), error is None) in drawn:
                continue
            drawn.add((round(x), error is None))
            self._known.add("completed" if error is None else "error")
            self._marks.append(_bar(x, y) if error is None else _cross(x, y))
            text = "" if error is None else plain(error) if isinstance(error, str) else self._short(error, 60)
            yield _Labelled(x, x - 6, x + 6, text, "sorry")

    def _write_labels(self, labelled: list[_Labelled], y: float) -> None:
        """From left to right, each above its mark: where one side is narrow, it is moved to the other."""
        labelled.sort(key=lambda one: one.x)
        free = self._left
        for one, after in zip_longest(labelled, labelled[1:]):
            if not one.text:
                free = max(free, one.right)
                continue
            end = self._right if after is None else _before(one, after)
            text = telling(fit_pixels(one.text, min(end - free, LABEL), svg.SMALL), one.text)
            half = pixels(text, svg.SMALL) / 2
            middle = min(max(one.x, free + half), end - half)
            self._marks.append(svg.text(middle, y, text, f"{one.style} m halo", svg.SMALL))
            free = middle + half + SPACE if text else free

    def _link_causes(self) -> None:
        for event in self._timeline.events if len(self._events) else ():
            if event.cause in self._events and event.id in self._events:
                self._links.append((self._events[event.cause], self._events[event.id], "cause"))

    def _draw_links(self) -> tuple[list[str], list[str]]:
        """Gives lines, and the heads of arrows; none where there are too many, since a part of them would mislead."""
        if len(self._links) > max(MIN_LINKS, self._plot * (self._bottom - TITLE) / LINK):
            self._known.add("thicket")
            return [], []
        self._known |= {kind for _, _, kind in self._links}
        drawn = [_linked(*link) for link in self._links]
        return [line for line, _ in drawn], [head for _, head in drawn]

    def _draw_key(self) -> tuple[list[str], float]:
        x, y = float(MARGIN), self._bottom + AXIS + 6
        drawn: list[str] = []
        for name, content in _KEY.items():
            if name not in self._known:
                continue
            content = content.format(len(self._links))
            width = 28 + pixels(content, svg.SMALL) + 14
            if x > MARGIN and x + width > self._right:
                x, y = float(MARGIN), y + ROW
            drawn += [_symbol(name, x + 11, y), svg.text(x + 28, y + 3.5, content, "dim", svg.SMALL)]
            x += width
        return drawn, y + (16 if drawn else -2)


_KEY = {
    "pill": "n together",
    "sky": "how they lie in time",
    "badge": "failed deliveries",
    "error": "error",
    "completed": "completed",
    "cause": "cause → effect",
    "passed": "passed a stage",
    "thicket": "{:,} are not drawn, too many to be told apart",
}


def _linked(cause: _Place, effect: _Place, kind: str) -> tuple[str, str]:
    """A line from a cause to its effect, and the head of the arrow, if it is one."""
    (x1, y1, r1), (x2, y2, r2) = cause, effect
    down = y2 > y1
    y1 += r1 if down or y1 == y2 else -r1
    y2 += -r2 if down else r2
    bend = y1 + 18 if y1 == y2 else (y1 + y2) / 2
    a, b, c, d, e = map(svg.number, (x1, y1, x2, y2, bend))
    line = svg.path(f"M{a} {b}C{a} {e} {c} {e} {c} {d}", "link" if kind == "cause" else "link dots")
    return line, svg.path(f"M{c} {d}l-3.5{'-6' if down else ' 6'}h7z", "arrow") if kind == "cause" else ""


def _symbol(name: str, x: float, y: float) -> str:
    match name:
        case "pill":
            pill = svg.box(x - 11, y - 7, 24, 14, "none edge", 7)
            return pill + svg.text(x + 1, y + 3.5, "×n", "tn m", svg.SMALL)
        case "sky":
            return svg.path(f"M{svg.number(x - 7)} {y + 5}v-4m4 4v-9m4 9v-12m4 12v-7m4 7v-3", "sky kn")
        case "badge":
            return svg.box(x - 5, y - 5.5, 11, 11, "badge", 5.5) + svg.text(x + 0.5, y + 3.6, "!", "o b m", svg.SMALL)
        case "error":
            return _cross(x, y)
        case "completed":
            return _bar(x, y)
        case "cause" | "thicket":
            return svg.line(x - 10, y, x + 6, y, "link") + svg.path(f"M{x + 12} {y}l-6-3.5v7z", "arrow")
        case _:
            return svg.line(x - 10, y, x + 12, y, "link dots")


def _cross(x: float, y: float) -> str:
    a, b = svg.number(x - 5), svg.number(y - 5)
    return svg.path(f"M{a} {b}l10 10m0-10l-10 10", "bad")


def _bar(x: float, y: float) -> str:
    return svg.path(f"M{svg.number(x)} {svg.number(y - 9)}v18", "bar")


def _middle(mark: Mark) -> float:
    return (mark.left + mark.right) / 2


def _before(one: _Labelled, other: _Labelled) -> float:
    """Where a label has to end: before a pill, and halfway to another label, or beyond where that one is short."""
    if not other.text:
        return other.left - SPACE
    wish = min(pixels(other.text, svg.SMALL), LABEL) / 2
    return max((one.x + other.x) / 2, other.x - wish) - SPACE


def _pill_width(count: int) -> float:
    return svg.SMALL * 0.66 * len(_counted(count)) + 12  # a guess that is quick: it is asked for each pixel


def _counted(count: int) -> str:
    return f"×{count:,}" if count < 1_000_000 else f"×{_compact(count)}"


def _compact(count: int) -> str:
    if count < 1000:
        return str(count)
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1_000_000:.3g}M"


def _skyline(mark: Mark, bins: list[Mark], y: float) -> str:
    """How many there are, from one end of a pill to the other, as bars."""
    heights: Counter[int] = Counter()
    begin, end = (bisect_left(bins, edge, key=lambda one: one.first) for edge in (mark.left, mark.right))
    for one in bins[begin:end]:
        heights[int(one.first // 3)] += one.count
    highest = max(heights.values(), default=1)
    bars = ((place * 3 + 1, max(1.5, 14 * count / highest)) for place, count in heights.items())
    return "".join(f"M{x} {svg.number(y)}v{svg.number(-height)}" for x, height in bars)


def _clock(time: float) -> str:
    try:
        return datetime.fromtimestamp(time).strftime("%H:%M:%S.%f")[:-3]
    except (ValueError, OverflowError, OSError):  # a file may hold any number
        return f"{time:g}" if isfinite(time) else "the beginning"


def _time_of(item: Any) -> float:
    return item.time  # type: ignore[no-any-return]
