"""Recordings as files: what comes back, what is damaged, and what no failure leaves behind."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import resource
import signal
import stat
import subprocess
import sys
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rxbus import Event, EventBus, InvalidArgument, RxBusError, Topic
from rxbus.recording import DamagedRecording, Delivery, NotARecording, Passage, Recording, Unencodable
from rxbus.recording._replaced import replaced
from tests import recordings
from tests.recording.conftest import Wound, content


def saved(recording: Recording, path: Path) -> Recording:
    recording.save(path)
    return Recording.load(path)


def test_what_is_loaded_is_what_was_saved(chain: Recording, tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    chain.save(path)
    loaded = Recording.load(str(path))
    assert content(loaded) == content(chain)
    assert repr(loaded) == repr(chain)
    again = tmp_path / "again.jsonl"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    loaded.stop()


def test_what_was_dropped_is_known(bus: EventBus, tmp_path: Path) -> None:
    with bus.record("a", maxlen=1) as recording:
        bus.publish("a")
        bus.publish("a")
    loaded = saved(recording, tmp_path / "file")
    assert (loaded.dropped, loaded.maxlen, loaded.pattern) == (1, 1, "a")


def test_a_recording_that_goes_on_is_saved_as_it_is(bus: EventBus, tmp_path: Path) -> None:
    recording = bus.record()
    bus.publish("a", 1)
    loaded = saved(recording, tmp_path / "file")
    bus.publish("a", 2)
    assert recording.ended is None
    assert loaded.ended is not None
    assert loaded.ended >= loaded.events[0].time
    assert (len(loaded.events), len(recording.events)) == (1, 2)


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters=".*>"), min_size=1, max_size=8)
times = st.floats(0, 1e10)
ids = st.integers(0, 2**63 - 1)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
json = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
kinds = st.sampled_from(["next", "error", "completed"])
events = st.builds(Event, names, json, ids, times, st.none() | ids)
deliveries = st.builds(Delivery, ids, text, times, times, text, st.none() | text)
passages = st.builds(Passage, text, kinds, json, times, st.none() | ids)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(events, max_size=4, unique_by=lambda event: event.id),
    st.lists(deliveries, max_size=4),
    st.lists(passages, max_size=4),
)
def test_whatever_json_has_comes_back(
    wound: Wound, tmp_path: Path, events: list[Any], deliveries: list[Any], passages: list[Any]
) -> None:
    events.sort(key=lambda event: event.id)
    deliveries.sort(key=lambda one: one.start)
    passages.sort(key=lambda one: one.time)
    recording = wound(events, deliveries, passages)
    assert content(saved(recording, tmp_path / "file")) == content(recording)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats() | st.binary() | st.text() | st.complex_numbers() | st.sets(st.integers()) | st.decimals()),
    st.text(min_size=1),
)
def test_whatever_there_is_can_be_saved(wound: Wound, tmp_path: Path, payloads: list[Any], name: str) -> None:
    recording = wound(
        [Event(name, payload, id, 1.0) for id, payload in enumerate(payloads)],
        [Delivery(id, name, 1.0, 1.0, name, name) for id in range(len(payloads))],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedRecording)  # the name may be no topic's, which is told
        loaded = saved(recording, tmp_path / "file")
    assert len(loaded.events) == len(loaded.deliveries) == len(payloads)
    for payload, event in zip(payloads, loaded.events, strict=True):
        lost = isinstance(payload, complex) or (isinstance(payload, float) and not math.isfinite(payload))
        if lost or isinstance(event.payload, Unencodable):
            assert event.payload == Unencodable(repr(payload).encode("utf-8", "backslashreplace").decode())


@dataclass
class Price:
    """A payload as programs have it."""

    value: float
    at: datetime


class Odd:
    """Cannot be encoded, nor shown."""

    def __repr__(self) -> str:
        raise RuntimeError


itself: list[Any] = []
itself.append(itself)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (object, "<class 'object'>"),
        (math.nan, "nan"),
        ({"deep": [{"price": -math.inf}]}, "{'deep': [{'price': -inf}]}"),
        ("half \ud83d", "'half \\ud83d'"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (itself, "[[...]]"),
        (msgspec.Raw(b"1\n2"), None),
        (Odd(), "<Odd, whose repr raises RuntimeError>"),
    ],
)
def test_what_json_cannot_hold_is_kept_as_its_repr(bus: EventBus, tmp_path: Path, payload: Any, shown: Any) -> None:
    with bus.record() as recording:
        bus.publish("a", payload)
        bus.publish("a", None)
    loaded = saved(recording, tmp_path / "file")
    assert [event.payload for event in loaded.events] == [Unencodable(shown or repr(payload)), None]
    assert content(saved(loaded, tmp_path / "again")) == content(loaded)


def test_half_a_character_in_a_name_is_written_as_its_escape(wound: Wound, tmp_path: Path) -> None:
    half = "half\ud83d"
    recording = wound(
        [Event(half, half, 1, 1.0)], [Delivery(1, half, 1.0, 1.0, half, half)], [Passage(half, "next", half, 1.0)]
    )
    loaded = saved(recording, tmp_path / "file")
    shown = "half\\ud83d"
    assert loaded.events == [Event(shown, Unencodable(repr(half)), 1, 1.0)]
    assert loaded.deliveries == [Delivery(1, shown, 1.0, 1.0, shown, shown)]
    assert loaded.passages == [Passage(shown, "next", Unencodable(repr(half)), 1.0)]


def test_what_looks_like_a_mark_is_a_payload(bus: EventBus, tmp_path: Path) -> None:
    with bus.record() as recording:
        bus.publish("a", {"repr": "mine", "type": "delivery"})
    assert saved(recording, tmp_path / "file").events == recording.events


def test_payloads_are_made_what_their_topics_say(bus: EventBus, tmp_path: Path) -> None:
    price = Price(1.5, datetime(2024, 2, 29, tzinfo=UTC))
    with bus.record() as recording:
        bus.publish("prices", price)
        bus.publish("by.number", {1: 2})
        bus.publish("prices", object())
    plain = saved(recording, tmp_path / "file")
    assert [event.payload for event in plain.events[:2]] == [{"value": 1.5, "at": "2024-02-29T00:00:00Z"}, {"1": 2}]
    topics = [Topic("prices", Price), Topic("by.number", dict[int, int])]
    loaded = Recording.load(tmp_path / "file", topics)
    assert loaded.events[0].payload == price
    assert loaded.events[1].payload == {1: 2}
    assert isinstance(loaded.events[2].payload, Unencodable)
    with pytest.raises(InvalidArgument, match=r"line 2: a payload of 'prices' is of another type: Expected `int`"):
        Recording.load(tmp_path / "file", [Topic("prices", int)])
    names: Any = ["prices"]
    with pytest.raises(InvalidArgument, match=r"as Topic\(name, type\), not 'prices'"):
        Recording.load(tmp_path / "file", names)


# -- what is no recording, and what is damaged


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "first line is not a recording's"),
        (b"\n", "first line is not a recording's"),
        (b"\x00\xff\xfe", "first line is not a recording's"),
        (b'{"version":1}\n', "first line is not a recording's"),
        (b'{"rxbus":"other","version":1}\n', "first line is not a recording's"),
        (b"[" * 200_000, "first line is not a recording's"),
        (b'{"rxbus":"recording","version":2,"new":true}\n', r"its version is 2, and this rxbus knows those up to 1"),
        (b'{"rxbus":"recording","version":1}\n', "first line is not a recording's"),
        (b'{"rxbus":"recording","version":1}\nnothing\n', "first line is not a recording's"),
    ],
)
def test_a_file_that_is_no_recording(tmp_path: Path, head: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(head)
    with pytest.raises(NotARecording, match=reason) as raised:
        Recording.load(path)
    assert isinstance(raised.value, RxBusError)
    assert isinstance(raised.value, ValueError)
    assert raised.value.path == str(path)
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "missing")


def test_a_header_with_a_pattern_that_is_none(chain: Recording, tmp_path: Path) -> None:
    path = tmp_path / "file"
    chain.save(path)
    path.write_bytes(path.read_bytes().replace(b'">"', b'"..."', 1))
    with pytest.warns(DamagedRecording, match="cannot be read: line 1$"):
        loaded = Recording.load(path)
    assert (loaded.pattern, loaded.dropped, loaded.maxlen) == (">", 0, len(chain.events))
    assert loaded.began == chain.events[0].time
    assert loaded.ended == max(one.end for one in chain.deliveries)
    assert (loaded.events, loaded.deliveries, loaded.passages) == (chain.events, chain.deliveries, chain.passages)


@pytest.fixture
def lines(bus: EventBus, tmp_path: Path) -> list[bytes]:
    """The lines of a small recording: a header, two events, two deliveries."""
    bus.subscribe("a").subscribe(lambda event: None)
    with bus.record() as recording:
        bus.publish("a", "é")
        bus.publish("a", None)
    recording.save(tmp_path / "whole")
    return (tmp_path / "whole").read_bytes().splitlines(keepends=True)


def test_truncated_at_every_byte(lines: list[bytes], tmp_path: Path) -> None:
    path, whole = tmp_path / "file", b"".join(lines)
    known = Recording.load(tmp_path / "whole")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < len(lines[0]) - 1:
            with pytest.raises(NotARecording):
                Recording.load(path)
        elif length == len(whole) - 1:  # only the end of the last line is missing
            assert content(Recording.load(path)) == content(known)
        else:
            with pytest.warns(DamagedRecording, match="missing: ") as told:
                loaded = Recording.load(path)
            assert told[0].filename == __file__
            count = sum(length >= len(b"".join(lines[: n + 1])) - 1 for n in range(1, 5))
            assert loaded.events == known.events[: min(count, 2)]
            assert loaded.deliveries == known.deliveries[: max(0, count - 2)]


@pytest.mark.parametrize("first", [1, 2, 4])
def test_the_end_of_a_file_is_loaded_from_its_first_line_on(lines: list[bytes], tmp_path: Path, first: int) -> None:
    known = Recording.load(tmp_path / "whole")
    (tmp_path / "file").write_bytes(b"".join(lines[first:]))
    with pytest.warns(DamagedRecording, match="is damaged; missing: 1 header$"):
        loaded = Recording.load(tmp_path / "file")
    assert (loaded.events, loaded.deliveries) == (known.events[first - 1 :], known.deliveries[max(0, first - 3) :])


@pytest.mark.parametrize("damage", [b"\x00", b"\xff"])
def test_damaged_at_every_byte(lines: list[bytes], tmp_path: Path, damage: bytes) -> None:
    path, whole = tmp_path / "file", b"".join(lines)
    known = Recording.load(tmp_path / "whole")
    line = 1
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + damage + whole[at + 1 :])
        if at == len(whole) - 1:
            with pytest.warns(DamagedRecording, match="line 5"):
                Recording.load(path)
        else:
            gone = {line, line + 1} if whole[at : at + 1] == b"\n" else {line}
            expected = f"cannot be read: line {line}" + ("; missing: " if line > 1 else "$")
            with pytest.warns(DamagedRecording, match=expected):
                loaded = Recording.load(path)
            assert loaded.events == [event for number, event in enumerate(known.events, 2) if number not in gone]
            assert loaded.deliveries == [one for number, one in enumerate(known.deliveries, 4) if number not in gone]
        line += whole[at : at + 1] == b"\n"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_anyhow(lines: list[bytes], tmp_path: Path, data: st.DataObject) -> None:
    """Not all damage can be told (a digit for a digit), but none makes more than a warning, or an error of the tree."""
    whole = b"".join(lines)
    at = data.draw(st.integers(0, len(whole)))
    damage = data.draw(st.binary(max_size=4) | st.text("0123456789e-", max_size=9).map(str.encode))
    path = tmp_path / "file"
    path.write_bytes(whole[:at] + damage + whole[at + data.draw(st.integers(0, 4)) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedRecording)
        try:
            loaded = Recording.load(path)
        except NotARecording:
            return
    assert str(loaded.causes()) or not loaded.events
    assert len(loaded.to_dataframe()) == len(loaded.events)
    loaded.to_perfetto(tmp_path / "trace")
    assert content(saved(loaded, tmp_path / "again")) == content(loaded)


def test_the_warning_is_short(bus: EventBus, tmp_path: Path) -> None:
    with bus.record() as recording:
        for _ in range(30):
            bus.publish("a")
    path = tmp_path / "file"
    recording.save(path)
    path.write_bytes(path.read_bytes().replace(b'"topic"', b'"tropic"'))
    with pytest.warns(DamagedRecording) as told:
        assert Recording.load(path).events == []
    expected = "cannot be read: line 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 20 more; missing: 30 events"
    assert str(told[0].message) == f"{path} is damaged; {expected}"


def test_a_damaged_topic_is_told_and_the_rest_is_replayed(lines: list[bytes], tmp_path: Path, bus: EventBus) -> None:
    lines[1] = lines[1].replace(b'"topic":"a"', b'"topic":"a b"')
    (tmp_path / "file").write_bytes(b"".join(lines))
    with pytest.warns(DamagedRecording, match="is damaged; no topic, cannot be replayed: line 2$"):
        loaded = Recording.load(tmp_path / "file")
    known = Recording.load(tmp_path / "whole")
    assert [event.id for event in loaded.events] == [event.id for event in known.events]
    replay = loaded.replay(bus, math.inf)
    assert (replay.published, replay.skipped, replay.done) == (len(known.events) - 1, 1, True)


def test_a_damaged_cause_makes_no_circle(lines: list[bytes], tmp_path: Path) -> None:
    lines[1] = lines[1].replace(b'"payload"', b'"cause":2,"payload"')
    lines[2] = lines[2].replace(b'"payload"', b'"cause":1,"payload"')
    (tmp_path / "file").write_bytes(b"".join(lines))
    assert [root.id for root in Recording.load(tmp_path / "file").causes()] == [1]


def test_damaged_times(wound: Wound, tmp_path: Path) -> None:
    recording = wound([Event("a", None, 1, 1e300)], [Delivery(1, "o", 1e300, 1e301, "t")])
    assert str(recording.causes()) == "#1 a at no time None"
    assert recording.to_dataframe().time.isna().all()
    recording.to_perfetto(tmp_path / "trace")


# -- writing


def test_a_full_disk_leaves_the_old_file(chain: Recording, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            chain.save(path)
        with pytest.raises(OSError, match="too large"):
            chain.to_perfetto(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_no_place_to_write(chain: Recording, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/file'$"):
        chain.save(tmp_path / "missing" / "file")
    with pytest.raises(IsADirectoryError):
        chain.save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_replaced(chain: Recording, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    chain.save(link)
    assert link.is_symlink()
    assert content(Recording.load(target)) == content(chain)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


SAVE = """
import os, signal, sys
from pathlib import Path
from rxbus.recording._replaced import replaced

with replaced(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_used_again(chain: Recording, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", SAVE, path]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    chain.save(path)
    assert os.listdir(tmp_path) == ["file"]
    assert content(Recording.load(path)) == content(chain)


@pytest.mark.parametrize("name", ["file", "f" * 255])
def test_who_writes_the_same_at_the_same_time_writes_the_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with replaced(path) as first, replaced(path) as second, replaced(path) as third:
        for number, file in enumerate((first, second, third, first, second, third)):
            file.write(b"%d" % (number % 3))
    assert path.read_bytes() == b"00"
    assert os.listdir(tmp_path) == [name]


def test_what_has_just_been_put_in_its_place_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may do so between the opening and the locking of the file beside."""
    path, flock = tmp_path / "file", fcntl.flock

    def put_in_place(*arguments: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        os.rename(tmp_path / ".file.rxbus.tmp", path)
        path.write_bytes(b"theirs")
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", put_in_place)
    with replaced(path) as file:
        file.write(b"ours")
        file.flush()
        assert path.read_bytes() == b"theirs"
    assert path.read_bytes() == b"ours"
    assert os.listdir(tmp_path) == ["file"]


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with replaced(tmp_path / "file") as file:
        file.write(b"whole")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"whole")]


def test_a_device_is_written_to(chain: Recording) -> None:
    chain.save(os.devnull)
    assert not Path(os.devnull).is_file()


def test_no_warning_where_nothing_is_damaged(chain: Recording, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved(chain, tmp_path / "file")


def test_times_that_no_clock_gives_are_damage(tmp_path: Path) -> None:
    lines = [
        recordings.event(1, "a", time=1.0),
        recordings.event(2, "a", time=1e300),
        recordings.event(3, "a", time=-1e300),
    ]
    with pytest.warns(DamagedRecording, match="line 3, 4"):
        recording = recordings.made(tmp_path, lines)
    assert [one.id for one in recording.events] == [1]
    with pytest.raises(NotARecording, match="first line"):
        recordings.made(tmp_path, [], ended=1e300)
