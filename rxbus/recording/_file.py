"""Recordings as files: JSON lines, the first of which says what the file is and how much it holds.

    {"rxbus":"recording","version":1,"pattern":">","maxlen":100000,"began":…,"ended":…,"dropped":0,"events":2,…}
    {"type":"event","id":1,"topic":"prices","time":…,"payload":101.5}
    {"type":"event","id":2,"topic":"sockets","time":…,"cause":1,"repr":"<socket.socket …>"}
    {"type":"delivery","event":1,"observer":"print","start":…,"end":…,"thread":"MainThread","error":null}
    {"type":"passage","stage":"mapped","kind":"next","time":…,"event":1,"value":2}

What cannot be written as JSON is marked by the name of its field (`repr`), which no payload can forge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rxbus import Event, matcher
from rxbus.errors import InvalidArgument, InvalidTopic, RxBusError
from rxbus.recording._records import Delivery, Kind, Passage, Tape, Unencodable, is_topic, safe_repr, writable
from rxbus.recording._replaced import replaced

VERSION = 1
_LONGEST_HEADER = 100_000  # bytes: what is no recording may be one endless line


class NotARecording(RxBusError, ValueError):
    """A file that is no recording, or one of a later version of rxbus.

    Attributes:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} is not a recording that can be loaded: {self.reason}"


class DamagedRecording(UserWarning):
    """Warns that a part of a recording could not be loaded, or cannot be replayed: its topic is none."""


_Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[float, Meta(ge=-62_135_596_800, le=253_402_300_799)]  # as a `datetime`'s: differences are finite


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    rxbus: Literal["recording"]
    version: int
    pattern: str
    maxlen: Annotated[int, Meta(ge=1)]
    began: _Time
    ended: _Time
    dropped: int
    dropped_passages: int
    events: int
    deliveries: int
    passages: int


class _Version(msgspec.Struct):
    """What a first line has in every version; all others have nothing that is unknown, or a damaged name is skipped."""

    rxbus: Literal["recording"]
    version: int


class _EventLine(msgspec.Struct, tag="event", omit_defaults=True, forbid_unknown_fields=True):
    id: _Id
    topic: str
    time: _Time
    cause: _Id | None = None
    payload: Any = UNSET
    repr: str | UnsetType = UNSET


class _DeliveryLine(msgspec.Struct, tag="delivery", forbid_unknown_fields=True):
    event: _Id
    observer: str
    start: _Time
    end: _Time
    thread: str
    error: str | None


class _PassageLine(msgspec.Struct, tag="passage", omit_defaults=True, forbid_unknown_fields=True):
    stage: str
    kind: Kind
    time: _Time
    event: _Id | None = None
    value: Any = UNSET
    repr: str | UnsetType = UNSET


_Line = _EventLine | _DeliveryLine | _PassageLine
_DAMAGED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], _Line] = msgspec.json.Decoder(_Line).decode


def save(tape: Tape, path: Path) -> None:
    """Writes a recording.

    Raises:
        OSError: It cannot be written; a file that was there is as it was.
    """
    with replaced(path) as file:
        file.writelines(_lines(tape))


def load(path: Path, types: dict[str, type]) -> Tape:
    """Reads a recording, as far as it is whole; warns of what is not.

    Args:
        path: The file.
        types: Of payloads, by topic.

    Raises:
        NotARecording: It is none, or one of a later version.
        InvalidArgument: A payload is not of its type.
        OSError: It cannot be read.
    """
    events: list[Event[Any]] = []
    deliveries: list[Delivery] = []
    passages: list[Passage] = []
    bad: list[int] = []
    unnamed: list[int] = []  # whose topics are none: they are kept, as whatever is whole
    lost: dict[str, int] = {}
    with path.open("rb") as file:
        first = file.readline(_LONGEST_HEADER)
        header = _header(path, first)
        # Without a header, as after `tail`, the first line may be a record like the others.
        for number, line in enumerate(file if header else chain((first,), file), 2 if header else 1):
            one = _record(line)
            if one is None:
                bad.append(number)
                if header is None and bad == [1, 2]:
                    break
            elif isinstance(one, _EventLine):
                events.append(_event(one, types, number))
                if not is_topic(one.topic):
                    unnamed.append(number)
            elif isinstance(one, _DeliveryLine):
                deliveries.append(Delivery(one.event, one.observer, one.start, one.end, one.thread, one.error))
            else:
                passages.append(Passage(one.stage, one.kind, _value(one.value, one.repr), one.time, one.event))
    events.sort(key=attrgetter("id"))
    deliveries.sort(key=attrgetter("start"))
    passages.sort(key=attrgetter("time"))
    if header is None:
        if not (events or deliveries or passages):
            raise NotARecording(str(path), "its first line is not a recording's")
        header = _stand_in(events, deliveries, passages)
        lost = {"header": int(1 not in bad)}  # a damaged one is among the lines that cannot be read
    found = {"events": len(events), "deliveries": len(deliveries), "passages": len(passages)}
    _warn(path, bad, unnamed, lost | {kind: getattr(header, kind) - count for kind, count in found.items()})
    about = header.pattern, header.maxlen, header.began, header.ended, header.dropped, header.dropped_passages
    return Tape(*about, events, deliveries, passages)


def _header(path: Path, line: bytes) -> _Header | None:
    """Gives what the first line says; None where it cannot be read: if the next one can, the file is a recording."""
    try:
        version = msgspec.json.decode(line, type=_Version).version
        if version > VERSION:
            raise NotARecording(str(path), f"its version is {version}, and this rxbus knows those up to {VERSION}")
        header = msgspec.json.decode(line, type=_Header)
        matcher(header.pattern)
    except (*_DAMAGED, InvalidTopic):
        return None
    return header


def _record(line: bytes) -> _Line | None:
    try:
        return _decode(line)
    except _DAMAGED:
        return None


def _stand_in(events: list[Event[Any]], deliveries: list[Delivery], passages: list[Passage]) -> _Header:
    """Stands in for a first line that is damaged: nobody knows what is missing."""
    times = [event.time for event in events] + [one.time for one in passages]
    times += [time for one in deliveries for time in (one.start, one.end)]
    counts = len(events), len(deliveries), len(passages)
    return _Header("recording", VERSION, ">", max(1, len(events)), min(times), max(times), 0, 0, *counts)


def _event(line: _EventLine, types: dict[str, type], number: int) -> Event[Any]:
    payload = _value(line.payload, line.repr)
    if line.topic in types and not isinstance(payload, Unencodable):
        try:
            payload = msgspec.convert(payload, types[line.topic], str_keys=True)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"line {number}: a payload of {line.topic!r} is of another type: {error}") from None
    return Event(line.topic, payload, line.id, line.time, line.cause)


def _value(value: Any, shown: str | UnsetType) -> Any:
    if isinstance(shown, str):
        return Unencodable(shown)
    return None if value is UNSET else value


def _warn(path: Path, bad: list[int], unnamed: list[int], missing: dict[str, int]) -> None:
    gaps = ", ".join(f"{count} {kind}" for kind, count in missing.items() if count > 0)
    parts = {"cannot be read: line": _numbers(bad), "no topic, cannot be replayed: line": _numbers(unnamed)}
    told = [f"{what} {which}" for what, which in {**parts, "missing:": gaps}.items() if which]
    if told:  # the caller of `Recording.load` is
        warnings.warn(f"{path} is damaged; {'; '.join(told)}", DamagedRecording, stacklevel=4)


def _numbers(lines: list[int]) -> str:
    return ", ".join(map(str, lines[:10])) + (f" and {len(lines) - 10} more" if len(lines) > 10 else "")


def _lines(tape: Tape) -> Iterator[bytes]:
    assert tape.ended is not None
    counts = len(tape.events), len(tape.deliveries), len(tape.passages)
    yield _line(
        _Header(
            "recording",
            VERSION,
            tape.pattern,
            tape.maxlen,
            tape.began,
            tape.ended,
            tape.dropped,
            tape.dropped_passages,
            *counts,
        )
    )
    for event in tape.events:
        line = _EventLine(event.id, event.topic, event.time, event.cause)
        line.payload, line.repr = _encoded(event.payload)
        yield _line(line)
    for delivery in tape.deliveries:
        yield _line(_DeliveryLine(*msgspec.structs.astuple(delivery)))
    for passage in tape.passages:
        passed = _PassageLine(passage.stage, passage.kind, passage.time, passage.event)
        passed.value, passed.repr = _encoded(passage.value)
        yield _line(passed)


def _line(line: msgspec.Struct) -> bytes:
    try:
        return _encode(line) + b"\n"
    except UnicodeEncodeError:  # a name or a repr with half a character, which UTF-8 has not
        for field in line.__struct_fields__:
            value = getattr(line, field)
            if isinstance(value, str):
                setattr(line, field, writable(value))
        return _encode(line) + b"\n"


def _encoded(value: object) -> tuple[Any, str | UnsetType]:
    """Gives a value as JSON; or its repr, where JSON cannot hold it."""
    if isinstance(value, Unencodable):
        return UNSET, value.repr
    with suppress(Exception):  # a type, a string or a depth that JSON has not; or what an attribute raises
        raw = _encode(value)
        if raw and b"\n" not in raw and (b"null" not in raw or _is_finite(value)):
            return msgspec.Raw(raw), UNSET
    return UNSET, safe_repr(value)


def _is_finite(value: object) -> bool:
    """Whether no number in a value is one that JSON has not, for which msgspec writes null."""
    ahead = [msgspec.to_builtins(value)]
    while ahead:
        one = ahead.pop()
        if isinstance(one, float) and not isfinite(one):
            return False
        if isinstance(one, dict):
            ahead.extend(one.values())
        elif isinstance(one, list | tuple):
            ahead.extend(one)
    return True
