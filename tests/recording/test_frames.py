"""Recordings as data frames."""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd
import pytest

from rxbus import Event, InvalidArgument
from rxbus.errors import MissingExtra
from rxbus.recording import Delivery, Recording
from tests.recording.conftest import Wound


@pytest.fixture
def recording(wound: Wound) -> Recording:
    return wound(
        [
            Event("a", [1, 2], 3, 1709210096.25),
            Event("b", {"n": 1}, 4, 1709210097.0, 3),
            Event("b", pd.Series([1, 2]), 5, 1709210098.0, 2),
        ],
        [
            Delivery(3, "one", 1709210096.25, 1709210098.25, "main"),
            Delivery(3, "other", 1709210096.5, 1709210097.0, "worker", "ValueError()"),
            Delivery(4, "one", 1709210097.0, 1709210097.5, "main"),
        ],
    )


def test_events(recording: Recording) -> None:
    frame = recording.to_dataframe()
    assert frame.index.name == "id"
    assert frame.index.tolist() == [3, 4, 5]
    assert frame.topic.tolist() == ["a", "b", "b"]
    assert frame.payload.tolist()[:2] == [[1, 2], {"n": 1}]
    assert frame.payload[5] is recording.events[2].payload
    assert frame.time[3] == pd.Timestamp("2024-02-29 12:34:56.25", tz="UTC")
    assert frame.cause.isna().tolist() == [True, False, False]
    assert frame.cause.tolist()[1:] == [3, 2]
    assert frame.observers.tolist() == [2, 1, 0]
    assert frame.acknowledged.tolist() == [1, 1, 0]
    assert frame.failed.tolist() == [1, 0, 0]
    assert frame.latency.tolist()[:2] == [2.0, 0.5]
    assert frame.latency.isna().tolist() == [False, False, True]
    assert frame.groupby("topic").latency.max().to_dict() == {"a": 2.0, "b": 0.5}


def test_deliveries(recording: Recording) -> None:
    frame = recording.to_dataframe("deliveries")
    assert frame.event.tolist() == [3, 3, 4]
    assert frame.topic.tolist() == ["a", "a", "b"]
    assert frame.observer.tolist() == ["one", "other", "one"]
    assert frame.duration.tolist() == [2.0, 0.5, 0.5]
    assert frame.thread.tolist() == ["main", "worker", "main"]
    assert frame.error.tolist() == [None, "ValueError()", None]
    assert (frame.end - frame.start).dt.total_seconds().tolist() == [2.0, 0.5, 0.5]


@pytest.mark.parametrize("of", ["events", "deliveries"])
def test_nothing_has_the_same_columns(recording: Recording, wound: Wound, of: Any) -> None:
    full, empty = recording.to_dataframe(of), wound([]).to_dataframe(of)
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    times = {"events": ["time"], "deliveries": ["start", "end"]}[of]
    assert {str(full.dtypes[name]) for name in times} == {"datetime64[ns, UTC]"}


def test_without_pandas(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"to_dataframe\(\) needs the extra 'pandas'"):
        recording.to_dataframe()


def test_of_what(recording: Recording) -> None:
    with pytest.raises(InvalidArgument, match="'passages'"):
        recording.to_dataframe("passages")  # type: ignore[arg-type]


def test_from_a_bus(chain: Recording) -> None:
    frame = chain.to_dataframe()
    assert frame.observers.tolist() == [1] * 8
    assert frame.failed.sum() == 2
    assert (frame.latency >= 0).all()
    assert len(chain.to_dataframe("deliveries")) == 8
