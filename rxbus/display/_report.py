"""A recording as one page: a file that opens anywhere, asks for nothing and runs nothing.

No script is in it, and its Content-Security-Policy forbids any; whatever comes from the recording is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from html import escape
from importlib.resources import files
from statistics import median

from rxbus._short import Shortener, clip, plain
from rxbus.display._analysis import Analysis, Latency, Lineage, TopicFigures, analyse, between
from rxbus.display._axis import duration
from rxbus.display._marbles import Marbles, marbles
from rxbus.display._timeline import label
from rxbus.recording import Cause, Recording

# So many are shown of each; the page says how many more there are.
TOPICS = 200
OBSERVERS = 100
FAILURES = 100
TREES = 10
TREE_LINES = 100
BRANCHES = 20
DEPTH = 12
LONGEST = 120  # characters of a payload
WIDTH = 1150  # pixels of the marble diagram
COLUMNS = 120  # characters, of the same as text


def report(recording: Recording) -> str:
    """Makes a page of a recording: topics, rates, latencies, observers, failures, marbles, and what led to what.

    It is a whole HTML document that needs nothing beside it, legible in light and dark. Of very many topics,
    observers, failures or trees it shows the first, and says how many more there are.
    """
    found = analyse(recording)
    title = f"Recording of {shown(recording.pattern)}"
    style = (files("rxbus.display") / "report.css").read_text("utf-8")
    body = "".join(
        (
            _head(title, found, going_on=recording.ended is None),
            _section("Marbles", _picture(marbles(recording, width=WIDTH))),
            _section("Topics", _topics(found)),
            _section("Slowest observers", _observers(found)),
            _section("Failures", _failures(found)) if found.failures else "",
            _section("What led to what", _lineage(found.lineage) + _trees(recording)),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n'
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


# -- Texts


def shown(text: str, longest: int = 200) -> str:
    return clip(plain(text[: longest + 1]), longest)


def code(text: str, longest: int = 200) -> str:
    return f"<code>{escape(shown(text, longest))}</code>"


def when(time: float) -> str:
    try:
        return datetime.fromtimestamp(time).astimezone().isoformat(" ", "seconds")  # as in the marbles: the time here
    except (OverflowError, ValueError, OSError):  # a file may hold any number
        return f"{time:g} s"


def significant(number: float) -> str:
    """Writes a number with three figures, or all of those before the point."""
    if number < 0.01:
        return f"{number:.2g}"
    return f"{number:,.{min(2, max(0, 2 - math.floor(math.log10(number))))}f}"


def rate(per_second: float | None) -> str:
    return "" if per_second is None else significant(per_second)


def plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


# -- Parts


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}</section>\n"


def _head(title: str, found: Analysis, going_on: bool) -> str:
    pattern = title.removeprefix("Recording of ")
    dropped = f"; {plural(found.dropped, 'earlier event')} let go of" if found.dropped else ""
    latency = found.latency
    tiles = [
        ("events", f"{found.events:,}", ""),
        ("events / s", rate(found.per_second) or "-", ""),
        ("topics", f"{len(found.topics):,}", ""),
        ("observers", f"{len(found.observers):,}", ""),
        ("latency, p50", duration(latency.p50) if latency else "-", ""),
        ("latency, p99", duration(latency.p99) if latency else "-", ""),
        ("deliveries", f"{found.deliveries:,}", ""),
        ("failed", f"{found.failed:,}", "bad" if found.failed else ""),
    ]
    drawn = "".join(f'<div class="tile {kind}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value, kind in tiles)
    return (
        f"<header>\n<h1>Recording of <code>{escape(pattern)}</code></h1>\n"
        f"<p>From {when(found.began)}, {duration(found.seconds)}{', going on' * going_on}{dropped}</p>\n"
        f'<dl class="tiles">{drawn}</dl>\n</header>\n'
    )


def _picture(picture: Marbles) -> str:
    """As an image, the SVG keeps its styles to itself, and can neither run nor ask for anything."""
    data = base64.b64encode(picture.svg.encode()).decode()
    image = f'<img alt="Marble diagram: {escape(picture.title)}" src="data:image/svg+xml;base64,{data}">'
    text = f'<details><summary>As text</summary><pre class="wide">{escape(picture.text(COLUMNS))}</pre></details>'
    return f'<div class="wide">{image}</div>\n{text}\n'


def _table(headings: Iterable[tuple[str, str]], rows: Iterable[Iterable[str]], more: int, thing: str) -> str:
    """Draws a table; each column has a class, which says whether it holds numbers."""
    columns = list(headings)
    kinds = [kind for _, kind in columns]
    head = "".join(f'<th class="{kind}" scope="col">{heading}</th>' for heading, kind in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row, kinds))}</tr>\n" for row in rows)
    rest = f'<p class="more">… and {more:,} more {thing}</p>\n' if more > 0 else ""
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{rest}'


def _cell(content: str, kind: str) -> str:
    return f'<td class="{kind}">{content}</td>'


def _topics(found: Analysis) -> str:
    if not found.topics:
        return "<p>Nothing was published.</p>\n"
    scale = Scale([one.latency for one in found.topics if one.latency])
    headings = [
        ("topic", ""),
        ("events", "n"),
        ("per second", "n"),
        ("over time", ""),
        ("observers", "n"),
        ("p50", "n"),
        ("p99", "n"),
        ("max", "n"),
        (f"from p50 to p99 and max{scale.legend}", ""),
        ("failed", "n"),
    ]
    rows = (
        (
            code(one.topic),
            f"{one.events:,}",
            rate(one.per_second),
            _spark(one),
            f"{one.observers:,}",
            *_latency(one.latency),
            scale.draw(one.latency),
            _failed(one.failures),
        )
        for one in found.topics[:TOPICS]
    )
    note = "<p>Latency: from the publish until the last observer's delivery had ended.</p>\n"
    return _table(headings, rows, len(found.topics) - TOPICS, "topics") + note


def _observers(found: Analysis) -> str:
    if not found.observers:
        return "<p>Nobody observed.</p>\n"
    scale = Scale([one.latency for one in found.observers])
    headings = [
        ("observer", ""),
        ("deliveries", "n"),
        ("topics", "n"),
        ("p50", "n"),
        ("p99", "n"),
        ("max", "n"),
        (f"from p50 to p99 and max{scale.legend}", ""),
        ("in total", "n"),
        ("failed", "n"),
    ]
    rows = (
        (
            code(one.observer),
            f"{one.deliveries:,}",
            f"{one.topics:,}",
            *_latency(one.latency),
            scale.draw(one.latency),
            duration(one.total),
            _failed(one.failures),
        )
        for one in found.observers[:OBSERVERS]
    )
    note = "<p>By the median; from the call of the handler until the delivery had ended.</p>\n"
    return _table(headings, rows, len(found.observers) - OBSERVERS, "observers") + note


def _failures(found: Analysis) -> str:
    headings = [("error", ""), ("observer", ""), ("topic", ""), ("times", "n"), ("first", "")]
    rows = (
        (
            code(one.error, 300),
            code(one.observer),
            code(one.topic),
            f'<span class="bad">{one.count:,}</span>',
            f"#{one.first.id} {code(label(one.first.payload, Shortener(), 60), 60)}",
        )
        for one in found.failures[:FAILURES]
    )
    return _table(headings, rows, len(found.failures) - FAILURES, "kinds of failures")


def _latency(latency: Latency | None) -> tuple[str, str, str]:
    return ("", "", "") if latency is None else (duration(latency.p50), duration(latency.p99), duration(latency.max))


def _failed(count: int) -> str:
    return f'<span class="bad">{count:,}</span>' if count else "0"


# -- Small pictures: presentation attributes and classes only, since the policy forbids the attribute `style`


def _spark(one: TopicFigures) -> str:
    """Draws a topic's events over time, as bars; their heights are relative to its own highest."""
    most = max(one.bins)
    bars = "".join(
        f"M{2 * number} 20v-{max(1.0, 20 * count / most):.3g}h1.5v{max(1.0, 20 * count / most):.3g}z"
        for number, count in enumerate(one.bins)
        if count
    )
    size = f'viewBox="0 0 {2 * len(one.bins)} 20" width="{2 * len(one.bins)}" height="20"'
    return f'<svg class="spark" {size} aria-hidden="true"><path d="{bars}"/></svg>'


class Scale:
    """A logarithmic scale that the latencies of a table share."""

    WIDTH = 140

    def __init__(self, latencies: list[Latency]) -> None:
        ends = [value for one in latencies for value in (one.p50, one.max)]
        self._low = math.floor(math.log10(max(1e-6, min(ends, default=1e-6))))
        self._high = max(self._low + 1, math.ceil(math.log10(max(1e-6, *ends, 1e-6))))

    @property
    def legend(self) -> str:
        low, high = (duration(10.0**power) for power in (self._low, self._high))
        return f'<span class="scale"><span>{low}</span><span>{high}</span></span>'

    def draw(self, latency: Latency | None) -> str:
        if latency is None:
            return ""
        p50, p99, most = (self._place(seconds) for seconds in (latency.p50, latency.p99, latency.max))
        marks = (
            f'<path class="axis" d="M0 8H{self.WIDTH}"/><path class="most" d="M{p50} 8H{most}"/>'
            f'<path class="usual" d="M{p50} 8H{p99}"/><circle cx="{p50}" cy="8" r="3.5"/>'
        )
        size = f'viewBox="-4 0 {self.WIDTH + 8} 16" width="{self.WIDTH + 8}" height="16"'
        return f'<svg class="range" {size} aria-hidden="true">{marks}</svg>'

    def _place(self, seconds: float) -> str:
        place = (math.log10(max(1e-6, seconds)) - self._low) / (self._high - self._low)
        return f"{self.WIDTH * min(1.0, max(0.0, place)):.4g}"


# -- Causes


def _lineage(root: Lineage) -> str:
    """Draws which topics led to which, as a tree of counts."""
    if not any(one.effects for one in root.effects.values()):
        return "<p>No event led to another.</p>\n"
    note = "<p>Which topics led to which: how many events, and the median time from the cause.</p>\n"
    return f'{note}<div class="tree wide">{_branches(root, 0)}</div>\n'


def _branches(parent: Lineage, depth: int) -> str:
    effects = parent.sorted_effects()
    if depth == DEPTH:
        return f'<ul><li class="more">… and {plural(_below(parent), "event")} further down</li></ul>'
    drawn = "".join(f"<li>{_branch(one, depth)}</li>" for one in effects[:BRANCHES])
    if len(effects) > BRANCHES:
        left = sum(one.events for one in effects[BRANCHES:])
        drawn += f'<li class="more">… and {plural(left, "event")} on {len(effects) - BRANCHES:,} more topics</li>'
    return f"<ul>{drawn}</ul>"


def _branch(one: Lineage, depth: int) -> str:
    delay = f' <span class="note">+{duration(median(one.delays))}</span>' if one.delays else ""
    line = f'{code(one.topic)} <span class="count">{one.events:,}</span>{delay}'
    if not one.effects:
        return f'<span class="leaf">{line}</span>'
    return f"<details{' open' if depth < 3 else ''}><summary>{line}</summary>{_branches(one, depth + 1)}</details>"


def _below(one: Lineage) -> int:
    ahead, found = list(one.effects.values()), 0
    while ahead:
        effect = ahead.pop()
        found += effect.events
        ahead.extend(effect.effects.values())
    return found


def _trees(recording: Recording) -> str:
    """Draws the largest trees of single events, each folded."""
    sizes = [(sum(1 for _ in root.walk()), root) for root in recording.causes() if root.effects]
    if not sizes:
        return ""
    largest = sorted(sizes, key=lambda one: (-one[0], one[1].id))[:TREES]
    drawn = "".join(_tree(size, root) for size, root in largest)
    more = f", the largest {TREES} of {len(sizes):,}" if len(sizes) > TREES else ""
    return f"<h3>Trees of events{more}</h3>\n{drawn}"


def _tree(size: int, root: Cause) -> str:
    lines: list[str] = []
    for depth, cause, before in _walk(root):
        if len(lines) == TREE_LINES:
            break
        lines.append(_line(depth, cause, before))
    if size > len(lines):
        lines.append(f"… and {size - len(lines):,} more")
    topic = "an event that is not recorded" if root.event is None else code(root.event.topic)
    head = f'{topic} <span class="note">#{root.id}</span> <span class="count">{size:,}</span>'
    text = "\n".join(lines)
    return f'<details class="events"><summary>{head}</summary><pre class="wide">{text}</pre></details>\n'


def _walk(root: Cause) -> Iterator[tuple[int, Cause, Cause | None]]:
    """Gives all of a tree, with how deep it is and what caused it; without recursion, as trees may be deep."""
    ahead: list[tuple[int, Cause, Cause | None]] = [(0, root, None)]
    while ahead:
        one = ahead.pop()
        yield one
        ahead.extend((one[0] + 1, effect, one[1]) for effect in reversed(one[1].effects))


def _line(depth: int, cause: Cause, before: Cause | None) -> str:
    indent = "  " * depth if depth <= 2 * DEPTH else f"{'  ' * 2 * DEPTH}({depth} deep) "
    event = cause.event
    if event is None:
        return f"{indent}#{cause.id} not recorded"
    since = ""
    if before is not None and before.event is not None:
        since = f" +{duration(between(before.event.time, event.time))}"
    topic = f"<b>{escape(shown(event.topic))}</b>"
    return f"{indent}{topic}{since} {escape(label(event.payload, Shortener(), LONGEST))} <i>#{event.id}</i>"
