"""What a marble diagram shows of a recording: lanes, and where on them something is, gathered by pixel or by column."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil, isnan
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rxbus import Event
from rxbus._short import Shortener, clip, plain
from rxbus.recording import Unencodable

if TYPE_CHECKING:
    from rxbus.recording import Passage, Recording

_Timed = TypeVar("_Timed", "Event[Any]", "Passage")


def label(value: object, short: Shortener, limit: int) -> str:
    """What to write of a payload: its repr, shortened; also of one that only its repr was saved of."""
    return clip(plain(value.repr), limit) if isinstance(value, Unencodable) else short(value, limit)


@dataclass(eq=False)
class Lane:
    """A topic's or a stage's line.

    Attributes:
        name: Of the topic or stage.
        hue: Which of the topics it is, so which colour and shape it has; None for a stage, and for what is left over.
        is_stage: Whether it is a stage.
        times: When something came, item by item.
        items: What came.
        hues: Whose items they are, where that differs.
        failed: Which of the items, by their index, have a delivery that failed.
        ends: When the stage's stream ended, and the error or None.
    """

    name: str
    hue: int | None = None
    is_stage: bool = False
    times: list[float] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    hues: list[int | None] | None = None
    failed: list[int] = field(default_factory=list)
    ends: list[tuple[float, Any]] = field(default_factory=list)

    def label(self, index: int, short: Shortener, limit: int) -> str:
        """What to write of a payload, or of what has passed."""
        item = self.items[index]
        value = item.payload if isinstance(item, Event) else item.value
        return label(value, short, limit)


@dataclass(slots=True)
class Mark:
    """What is drawn at one place of a lane: a marble, or a pill that stands for several.

    Attributes:
        first: Where the first of its items is.
        last: Where the last one is.
        left: Where the picture of it begins; so it does not overlap its neighbours.
        right: Where it ends.
        count: How many items it stands for.
        index: One of its items.
        hue: Whose items they are, if they are all of one topic.
        failed: How many have a delivery that failed.
    """

    first: float
    last: float
    left: float
    right: float
    count: int
    index: int
    hue: int | None
    failed: int


_FAR = 1e12  # seconds; some 30,000 years


class Limits(NamedTuple):
    """Where a lane begins and ends, and how wide a pill may become."""

    left: float
    right: float
    slot: float


class Timeline:
    """The lanes of a recording, as it is now, and the span of time that they show.

    Args:
        recording: What to show.
        start: From when on, in seconds since the recording began; by default since the first thing that came.
        end: Until when.
        max_lanes: How many topics and stages get a lane of their own; those with the fewest items share one.
    """

    def __init__(self, recording: Recording, start: float | None, end: float | None, max_lanes: int) -> None:
        tape = recording.tape()  # all as it is at one moment
        events, passages = tape.events, tape.passages
        self.dropped = tape.dropped
        if start is not None or end is not None:
            first = recording.began + start if start is not None else -float("inf")
            last = recording.began + end if end is not None else float("inf")
            events = [event for event in events if first <= event.time <= last]
            passages = [passage for passage in passages if first <= passage.time <= last]
        self.events = list(events)
        failures = Counter([one.event for one in tape.deliveries if one.error is not None])
        topics = _by_topic(events)
        stages = _by_stage(passages, topics)
        self.topic_count, self.stage_count, self.failed = len(topics), len(stages), 0
        for lane in topics.values() if failures else ():
            lane.failed = [index for index, event in enumerate(lane.items) if event.id in failures]
            self.failed += sum(failures[lane.items[index].id] for index in lane.failed)
        self.lanes = _in_order(topics, stages, max_lanes)
        self.start, self.end = _span([*topics.values(), *stages.values()], recording.began)
        if start is not None:
            self.start = recording.began + start
        if end is not None:
            self.end = max(recording.began + end, self.start)
        self._offset = self.start - recording.began

    @property
    def zero(self) -> str:
        """Which `start` the 0 of the axis is, where it is another one; who looks closer has to add it."""
        return f"start={self._offset:.3f}" if self.end > self.start and self._offset >= 0.0005 else ""

    @property
    def span(self) -> float:
        """How many seconds it shows; never none."""
        return max(self.end - self.start, 1e-6)

    def place(self, time: float, width: float) -> float:
        """Where a moment is, in a picture of some width; a picture of one moment has it in the middle."""
        return (time - self.start) / self.span * width if self.end > self.start else width / 2

    def gather(self, lane: Lane, width: int) -> list[Mark]:
        """Gathers a lane's items by pixel: what is at the same one is one mark, in the order of time."""
        if not lane.times:
            return []
        if self.end > self.start:
            start, scale = self.start, width / self.span
            places = [int((time - start) * scale) for time in lane.times]
        else:
            places = [width // 2] * len(lane.times)
        counts = Counter(places)
        index = dict(zip(places, range(len(places)), strict=True))
        failed = Counter(places[index] for index in lane.failed)
        hues: dict[int, int | None] = dict.fromkeys(counts, lane.hue)
        if lane.hues is not None:
            several = set(zip(places, lane.hues, strict=True))
            hues = dict(several)
            if len(hues) < len(several):
                seen = Counter(place for place, _ in several)
                hues = {place: hue if seen[place] == 1 else None for place, hue in hues.items()}
        return [Mark(x, x, x, x, counts[x], index[x], hues[x], failed[x]) for x in sorted(counts)]


def merge(marks: Iterable[Mark], radius: float, pill: Callable[[int], float], limits: Limits) -> Iterator[Mark]:
    """Makes marks that would overlap one pill, and cuts long stretches into pills of about the same width.

    Args:
        marks: In order, one per pixel at most.
        radius: Half of the width that a marble takes.
        pill: How wide the pill for a count is at least.
        limits: Where the lane begins and ends, and how wide a pill may become.
    """
    groups: list[tuple[Mark, list[Mark]]] = []
    for members in _chains(marks, 2 * radius):
        group = _sized(_joined(members), radius, pill, limits)
        while groups and groups[-1][0].right > group.left:
            members = groups.pop()[1] + members
            group = _sized(_joined(members), radius, pill, limits)
        groups.append((group, members))
    for group, members in groups:
        yield from _cut(group, members, limits.slot)


def _chains(marks: Iterable[Mark], near: float) -> Iterator[list[Mark]]:
    """Marks each of which is nearer to the one before than a marble is wide."""
    chain: list[Mark] = []
    for mark in marks:
        if chain and mark.first - chain[-1].last >= near:
            yield chain
            chain = []
        chain.append(mark)
    if chain:
        yield chain


def _sized(mark: Mark, radius: float, pill: Callable[[int], float], limits: Limits) -> Mark:
    half = radius
    if mark.count > 1:
        half = max((mark.last - mark.first) / 2 + radius, pill(mark.count) / 2)
    middle = min(max((mark.first + mark.last) / 2, limits.left + half), limits.right - half)
    mark.left, mark.right = middle - half, middle + half
    return mark


def _joined(marks: list[Mark]) -> Mark:
    first, last = marks[0], marks[-1]
    hues = {mark.hue for mark in marks}
    hue = first.hue if len(hues) == 1 else None
    count, failed = sum([mark.count for mark in marks]), sum([mark.failed for mark in marks])
    return Mark(first.first, last.last, first.left, last.right, count, first.index, hue, failed)


def _cut(group: Mark, members: list[Mark], slot: float) -> Iterator[Mark]:
    parts = ceil((group.right - group.left) / slot)
    if parts < 2 or group.count < 2:
        yield group
        return
    step = (group.right - group.left) / parts
    cut: defaultdict[int, list[Mark]] = defaultdict(list)
    for member in members:
        cut[min(int((member.first - group.left) / step), parts - 1)].append(member)
    for number, some in cut.items():
        part = _joined(some)
        part.left, part.right = group.left + number * step, group.left + (number + 1) * step
        yield part


def _by_topic(events: Iterable[Event[Any]]) -> dict[str, Lane]:
    groups: defaultdict[str, list[Event[Any]]] = defaultdict(list)
    for event in events:
        groups[event.topic].append(event)
    lanes = {}
    for hue, (topic, group) in enumerate(groups.items()):
        items, times = _with_time(group)
        lanes[topic] = Lane(topic, hue, items=items, times=times)
    return lanes


def _by_stage(passages: Iterable[Passage], topics: dict[str, Lane]) -> dict[str, Lane]:
    groups: defaultdict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        groups[passage.stage].append(passage)
    hues = {event.id: lane.hue for lane in topics.values() for event in lane.items} if groups else {}
    lanes = {}
    for stage, group in groups.items():
        timed, _ = _with_time(group)
        items = [passage for passage in timed if passage.kind == "next"]
        lane = lanes[stage] = Lane(stage, is_stage=True, items=items, times=[passage.time for passage in items])
        lane.hues = [hues.get(passage.event) for passage in items]
        ends = [passage for passage in timed if passage.kind != "next"]
        lane.ends = [(passage.time, passage.value if passage.kind == "error" else None) for passage in ends]
    return lanes


def _with_time(items: list[_Timed]) -> tuple[list[_Timed], list[float]]:
    """Leaves out what has no place on an axis: a file may hold any number, and none at all (NaN)."""
    times = [item.time for item in items]
    if not isnan(sum(times)) and min(times, default=0) > -_FAR and max(times, default=0) < _FAR:
        return items, times
    items = [item for item in items if -_FAR < item.time < _FAR]
    return items, [item.time for item in items]


def _in_order(topics: dict[str, Lane], stages: dict[str, Lane], max_lanes: int) -> list[Lane]:
    """Each stage under the topic of the first thing that came to it."""
    below: dict[int | None, list[Lane]] = {}
    for stage in stages.values():
        below.setdefault(next(iter(stage.hues or ()), None), []).append(stage)
    lanes: list[Lane] = []
    for topic in topics.values():
        lanes += [topic, *below.pop(topic.hue, ())]
    lanes += below.pop(None, [])
    if len(lanes) <= max_lanes:
        return lanes
    kept = set(sorted(lanes, key=lambda lane: -len(lane.times))[: max_lanes - 1])
    others = [lane for lane in lanes if lane not in kept]
    return [lane for lane in lanes if lane in kept] + [_together(others)]


def _together(lanes: list[Lane]) -> Lane:
    pairs = [
        (time, index in failed, item)
        for lane in lanes
        for failed in (set(lane.failed),)
        for index, (time, item) in enumerate(zip(lane.times, lane.items, strict=True))
    ]
    pairs.sort(key=lambda pair: pair[0])
    together = Lane(f"and {len(lanes):,} more")
    together.times = [time for time, _, _ in pairs]
    together.items = [item for _, _, item in pairs]
    together.failed = [index for index, (_, failed, _) in enumerate(pairs) if failed]
    return together


def _span(lanes: list[Lane], began: float) -> tuple[float, float]:
    ends = [time for lane in lanes for time, _ in lane.ends]
    first = min([min(lane.times) for lane in lanes if lane.times] + ends, default=began)
    return first, max([max(lane.times) for lane in lanes if lane.times] + ends, default=first)
