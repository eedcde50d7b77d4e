"""Recordings as traces for Perfetto: the JSON of Chrome's "Trace Event Format".

Publishes are slices on tracks of their topics, deliveries on those of their threads. Publishes could be asynchronous
ones (`b`, `e`), which may overlap at will; but flows, the arrows from cause to effect (`s`, `f`), bind to the slices of
threads (`X`) only. So a topic is a thread here, too. The slices of a thread must lie apart, or one in the other: what
overlaps otherwise goes to a further thread of the same name.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import msgspec

from rxbus import Event
from rxbus.recording._records import Delivery, Tape, moment, safe_repr, shortened, writable
from rxbus.recording._replaced import replaced

_PID = 1
_SHOWN = 200  # characters of a payload

_Entry = dict[str, Any]


class _Slice(msgspec.Struct, eq=False):
    """A bar in the picture. Times are in nanoseconds since the recording began."""

    category: str
    track: str
    name: str
    start: int
    end: int
    args: dict[str, Any]
    tid: int = 0

    def entry(self) -> _Entry:
        """The bar as a complete event."""
        where = {
            "ph": "X",
            "pid": _PID,
            "tid": self.tid,
            "ts": self.start / 1000,
            "dur": (self.end - self.start) / 1000,
        }
        return where | {"cat": self.category, "name": writable(self.name), "args": self.args}


def write_trace(tape: Tape, path: Path) -> None:
    """Writes a trace; see `Recording.to_perfetto`."""
    encode = msgspec.json.Encoder().encode
    about = {
        "recorded by": "rxbus",
        "pattern": writable(tape.pattern),
        "began": moment(tape.began),
        "dropped": tape.dropped,
    }
    with replaced(path) as file:
        file.write(b'{"displayTimeUnit":"ms","otherData":%b,"traceEvents":[' % encode(about))
        for number, entry in enumerate(_entries(tape)):
            file.write((b",\n" if number else b"\n") + encode(entry))
        file.write(b"\n]}\n")


def _entries(tape: Tape) -> Iterator[_Entry]:
    """All entries: first those that give names, then the others in order of time."""
    by_event: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in tape.deliveries:
        by_event[delivery.event].append(delivery)
    zero = min([tape.began, *(event.time for event in tape.events)])
    publishes = {event.id: _publish(event, by_event[event.id], zero) for event in tape.events}
    deliveries = {event.id: [_delivery(event, one, zero) for one in by_event[event.id]] for event in tape.events}
    bars = [*publishes.values()], [bar for some in deliveries.values() for bar in some]
    tracks = _lay_out(bars[0], _PID + 1)  # the thread that has the number of its process is the main thread
    tracks |= _lay_out(bars[1], _PID + 1 + len(tracks))
    yield _name("process_name", 0, name=writable(f"rxbus {tape.pattern}"))
    for tid, track in tracks.items():
        yield _name("thread_name", tid, name=writable(track))
        yield _name("thread_sort_index", tid, sort_index=tid)
    entries = [(bar, bar.entry()) for some in bars for bar in some]
    entries.extend(_flows(tape.events, publishes, deliveries))
    entries.sort(key=_place)
    yield from (entry for _, entry in entries)


def _place(one: tuple[_Slice, _Entry]) -> tuple[int, bool, int, bool]:
    """The order of entries: an outer slice comes before an inner one, and a flow right behind its slice.

    Perfetto binds a flow to the slice that has begun last on its track, whether that has ended or not. The ends of
    flows come behind the beginnings at the same time.
    """
    bar, entry = one
    return bar.start, entry["ph"] == "f", bar.start - bar.end, entry["ph"] != "X"


def _name(key: str, tid: int, **args: object) -> _Entry:
    return {"ph": "M", "name": key, "pid": _PID, "tid": tid, "ts": 0, "args": args}


def _publish(event: Event[Any], deliveries: list[Delivery], zero: float) -> _Slice:
    """A publish lasts until its last delivery has ended."""
    end = max([event.time, *(one.end for one in deliveries)])
    args = {
        "id": event.id,
        "cause": event.cause,
        "payload": writable(shortened(safe_repr(event.payload), _SHOWN)),
        "observers": len(deliveries),
        "failed": sum(one.error is not None for one in deliveries),
    }
    return _Slice("publish", f"topic {event.topic}", event.topic, _nano(event.time - zero), _nano(end - zero), args)


def _delivery(event: Event[Any], one: Delivery, zero: float) -> _Slice:
    args: dict[str, Any] = {"event": event.id, "topic": writable(event.topic)}
    if one.error is not None:
        args["error"] = writable(shortened(one.error, _SHOWN))
    start, end = _nano(one.start - zero), _nano(one.end - zero)
    return _Slice("delivery", f"thread {one.thread}", one.observer, start, max(start, end), args)


def _nano(seconds: float) -> int:
    return round(min(seconds, 9e9) * 1e9)  # Perfetto has 64 bits, which a damaged file may exceed


def _lay_out(bars: Iterable[_Slice], tid: int) -> dict[int, str]:
    """Gives each bar its thread; says how those are called, numbered from `tid` on."""
    by_track: dict[str, list[_Slice]] = defaultdict(list)
    for bar in bars:
        by_track[bar.track].append(bar)
    names: dict[int, str] = {}
    for track, some in sorted(by_track.items()):
        lanes = _Lanes()
        for bar in sorted(some, key=lambda bar: (bar.start, -bar.end)):
            bar.tid = tid + lanes.place(bar)
        names |= {tid + lane: track for lane in range(len(lanes))}
        tid += len(lanes)
    return names


class _Lanes:
    """Finds lanes for bars, in order of their start, without asking each: thousands of publishes may overlap."""

    def __init__(self) -> None:
        self._ends: list[list[int]] = []  # by lane: those of the bars that are open there, the innermost last
        self._innermost: list[tuple[int, int]] = []  # these, in order, and their lanes
        self._free: list[int] = []  # a heap of the other lanes

    def __len__(self) -> int:
        return len(self._ends)

    def place(self, bar: _Slice) -> int:
        """Gives a lane on which a bar lies behind all that has begun before it, or inside of what is open."""
        while self._innermost and self._innermost[0][0] <= bar.start:
            _, lane = self._innermost.pop(0)
            self._ends[lane].pop()
            if self._ends[lane]:
                insort(self._innermost, (self._ends[lane][-1], lane))
            else:
                heappush(self._free, lane)
        outer = bisect_left(self._innermost, (bar.end, 0))
        if outer < len(self._innermost) and not (self._free and self._free[0] < self._innermost[outer][1]):
            _, lane = self._innermost.pop(outer)
        elif self._free:
            lane = heappop(self._free)
        else:
            lane = len(self._ends)
            self._ends.append([])
        self._ends[lane].append(bar.end)
        insort(self._innermost, (bar.end, lane))
        return lane


def _flows(
    events: list[Event[Any]], publishes: dict[int, _Slice], deliveries: dict[int, list[_Slice]]
) -> Iterator[tuple[_Slice, _Entry]]:
    """Arrows to each publish that has a cause: from the delivery of that in which it was made.

    Which one it was is told by the time; where none was going on (it was made behind a buffer), the arrow comes from
    the cause's publish. It begins where that does: see `_place`.
    """
    for event in events:
        if event.cause not in publishes:
            continue
        effect, cause = publishes[event.id], publishes[event.cause]
        inside = [bar for bar in deliveries[event.cause] if bar.start <= effect.start <= bar.end]
        source = max(inside, key=lambda bar: bar.start, default=cause)
        if source.start <= effect.start:  # the clock may have been set back
            flow = {"cat": "cause", "name": "causes", "id": event.id, "pid": _PID}
            yield source, flow | {"ph": "s", "tid": source.tid, "ts": source.start / 1000}
            yield effect, flow | {"ph": "f", "tid": effect.tid, "ts": effect.start / 1000, "bp": "e"}
