"""Which event caused which: trees, forests, deep and wide ones, as text."""

from __future__ import annotations

from typing import Any

import pytest

from rxbus import Event, EventBus
from rxbus.recording import Recording, Unencodable
from tests.recording.conftest import Wound


def test_trees(chain: Recording) -> None:
    causes = chain.causes()
    assert [root.id for root in causes] == [1, 5]
    assert len(causes) == 2
    first = causes.roots[0]
    assert first.event == chain.events[0]
    assert [effect.id for effect in first] == [2, 3, 4]
    assert [effect.effects for effect in first] == [(), (), ()]
    assert [one.id for one in causes.walk()] == [*range(1, 9)]
    assert repr(causes) == "<Causes, roots: 2, events: 8>"
    assert repr(first) == "<Cause 1, 'a', effects: 3>"


@pytest.mark.usefixtures("half_past_five")
def test_as_text(wound: Wound) -> None:
    recording = wound(
        [
            Event("build", "go", 1, 0.0),
            Event("step", {"n": 1}, 2, 0.0015, 1),
            Event("log", "text\nin lines", 3, 0.002, 2),
            Event("step", None, 4, 2.0, 1),
            Event("lost", 7, 9, 3.0, 8),
        ]
    )
    assert str(recording.causes()).splitlines() == [
        "#1 build 05:30:00.000000 'go'",
        "├─ #2 step +1.5 ms {'n': 1}",
        "│  └─ #3 log +0.5 ms 'text\\nin lines'",
        "└─ #4 step +2e+03 ms None",
        "#8 (not recorded)",
        "└─ #9 lost 05:30:03.000000 7",
    ]
    assert str(recording.causes().roots[1]).splitlines()[0] == "#8 (not recorded)"
    assert repr(recording.causes().roots[1]) == "<Cause 8, not recorded, effects: 1>"
    assert str(wound([]).causes()) == ""


def test_a_cause_that_the_ring_let_go_of(bus: EventBus) -> None:
    bus.subscribe("a").subscribe(lambda event: [bus.publish("b", n) for n in range(3)])
    with bus.record(maxlen=2) as recording:
        bus.publish("a")
    (root,) = recording.causes()
    assert (root.id, root.event) == (1, None)
    assert [effect.id for effect in root] == [3, 4]


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_deep_chains_do_not_recurse(wound: Wound, depth: int) -> None:
    chain = wound([Event("a", None, id, float(id), id - 1 or None) for id in range(1, depth + 1)]).causes()
    (root,) = chain
    assert [one.id for one in root.walk()] == [*range(1, depth + 1)]
    lines = str(chain).splitlines()
    assert len(lines) == 201
    assert lines[-1] == f"… and {depth - 200} more"
    assert max(map(len, lines)) <= 120
    assert "#200 a" in lines[-2]
    assert repr(chain)
    assert repr(root)
    assert root == root
    assert hash(root) is not None
    del root, chain


def test_wide_trees_are_cut(wound: Wound) -> None:
    events = [Event("a", "x" * 1000, 1, 0.0)] + [Event("b", None, id, 0.0, 1) for id in range(2, 1002)]
    lines = str(wound(events).causes()).splitlines()
    assert len(lines) == 201
    assert lines[-1] == "… and 801 more"
    assert (len(lines[0]), lines[0][-1]) == (120, "…")


def test_what_has_no_repr_is_shown_nevertheless(wound: Wound) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "whose repr raises RuntimeError" in str(wound([Event("a", Odd(), 1, 0.0)]).causes())


@pytest.mark.usefixtures("half_past_five")
def test_what_would_steer_a_terminal_is_escaped(wound: Wound) -> None:
    class Steers:
        def __repr__(self) -> str:
            return "\x1b[2Jgone\u202e"

    text = str(wound([Event("a\u202eb", Steers(), 1, 0.0)]).causes())
    assert text == r"#1 a\u202eb 05:30:00.000000 \x1b[2Jgone\u202e"


@pytest.mark.usefixtures("half_past_five")
def test_what_no_file_could_hold_is_shown_as_it_was(wound: Wound) -> None:
    text = str(wound([Event("a", Unencodable("<socket 3>"), 1, 0.0)]).causes())
    assert text == "#1 a 05:30:00.000000 <socket 3>"


def test_causes_that_come_later_are_none(wound: Wound) -> None:
    events: list[Event[Any]] = [Event("a", None, 1, 0.0, 2), Event("a", None, 2, 0.0, 1), Event("a", None, 3, 0.0, 3)]
    causes = wound(events).causes()
    assert [(root.id, [effect.id for effect in root]) for root in causes] == [(1, [2]), (3, [])]
