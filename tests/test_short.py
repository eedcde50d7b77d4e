"""Short reprs of whatever there is."""

from __future__ import annotations

import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxbus import Event, Receipt
from rxbus._short import PATIENCE, Shortener, clip, plain, short
from rxbus.recording._records import safe_repr, shortened

MANY = 8_000_000
Pair = namedtuple("Pair", "x y")


@dataclass
class Point:
    x: int
    y: Any = None
    hidden: int = field(default=0, repr=False)


class Struct(msgspec.Struct):
    a: int
    b: Any = None


class Loud(dict[str, int]):
    def __repr__(self) -> str:
        return "Loud!"


@pytest.mark.parametrize(
    "value",
    [
        1,
        -1,
        True,
        None,
        1.5,
        2j,
        "it's",
        'say "hi"',
        b"\x00",
        bytearray(b"x"),
        [1, [2]],
        (),
        (1,),
        (1, 2),
        set(),
        {1},
        frozenset(),
        frozenset({1}),
        {},
        {"a": {"b": [1]}},
        deque([1]),
        Pair(1, 2),
        Point(1, [2]),
        Struct(1, "b"),
        ValueError("no"),
        KeyError(),
        Loud(a=1),
        print,
        int,
        range(3),
        array.array("i", [1, 2]),
        2**255,
        Counter("a"),
        Ellipsis,
    ],
    ids=repr,
)
def test_what_is_short_is_as_repr_writes_it(value: object) -> None:
    assert short(value) == repr(value)


def test_containers_that_are_near_enough() -> None:
    assert short(OrderedDict(a=1)) == "OrderedDict({'a': 1})"
    assert short(defaultdict(int, a=1)) == "defaultdict({'a': 1})"


@given(st.recursive(st.none() | st.text() | st.binary() | st.floats(), st.lists), st.integers(1, 100))
def test_nothing_is_longer_than_its_limit(value: object, limit: int) -> None:
    shown = short(value, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert len(repr(value)) > limit or shown == plain(repr(value)) or "[[[[[[" in shown


class Counted(list[Any]):
    """A list that tells how much of it has been looked at."""

    seen = 0

    def __iter__(self) -> Any:
        raise AssertionError("a repr does not call what the class has made of iteration")


@pytest.mark.parametrize(
    "value",
    [
        "x" * MANY,
        b"x" * MANY,
        bytearray(MANY),
        [0] * MANY,
        Point(0, "x" * MANY),
        Struct(0, "x" * MANY),
        ValueError("x" * MANY),
        {"x" * MANY: 1},
        array.array("d", bytes(MANY)),
        Counted([0] * 1000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_huge_is_not_written_whole(value: object) -> None:
    shown = Shortener()(value, 40)
    assert len(shown) == 40
    assert shown.endswith("…")


def test_an_integer_of_many_digits_is_not_written_in_decimal() -> None:
    assert short(10**100_000) == "<int of 332,193 bits>"
    assert short([1 << 256]) == "[<int of 257 bits>]"


def test_what_holds_itself_ends() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert short(ring) == "[[[[[[…]]]]]]"


class Raises:
    def __repr__(self) -> str:
        raise ValueError("no")


class NotText:
    def __repr__(self) -> str:
        return 1  # type: ignore[return-value]


class Deep:
    def __repr__(self) -> str:
        return repr(self)


class Endless:
    asked = 0

    def __repr__(self) -> str:
        Endless.asked += 1
        count = 0
        while True:
            try:
                count += 1
            except Exception:
                count = 0


class Lines:
    def __repr__(self) -> str:
        return "a\nb\x1b[31m\u202e\ud800"


def test_a_repr_that_fails_is_told_by_the_type() -> None:
    assert short([Raises(), 1]) == "[<Raises: its repr raised ValueError>, 1]"
    assert short(NotText()) == "<NotText: its repr raised TypeError>"
    assert short(Deep()) == "<Deep: its repr raised RecursionError>"


def test_a_repr_that_does_not_end_is_given_up_and_its_type_not_asked_again() -> None:
    Endless.asked = 0
    shown = Shortener()
    assert shown([Endless(), Endless()], 200) == "[" + ", ".join(["<Endless: its repr takes too long>"] * 2) + "]"
    assert shown(Endless()) == "<Endless: its repr takes too long>"
    assert Endless.asked == 1
    assert short(1) == "1"


def test_a_dict_that_changes_meanwhile_hurts_nobody() -> None:
    changing: dict[Any, Any] = {}

    class Grows:
        def __repr__(self) -> str:
            changing[len(changing)] = 1
            return "!"

    changing["a"] = Grows()
    assert short(changing) == "<dict: its repr raised RuntimeError>"


def test_one_line_and_nothing_that_a_terminal_or_a_reader_would_be_led_astray_by() -> None:
    assert short(Lines()) == r"a\nb\x1b[31m\u202e\ud800"
    assert plain("topic.\u202etxt\u200b") == r"topic.\u202etxt\u200b"
    assert plain("日本 😀 é") == "日本 😀 é"


def test_stacked_combining_characters_are_kept_low() -> None:
    assert plain("z" + "\u0301" * 50 + "a") == "z\u0301\u0301a"


def test_clip() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("abcd", 3) == "ab…"


def test_an_event_is_shown_on_a_line_however_large_its_payload_is() -> None:
    assert repr(Event("a", {"b": 1}, 7, 1.5, 3)) == "Event(topic='a', payload={'b': 1}, id=7, time=1.5, cause=3)"
    shown = repr(Receipt(Event("a", "x" * MANY, 7, 1.5), 1))
    assert len(shown) < 400
    assert "…, id=7" in shown
    assert "its repr raised" in repr(Event("a", Raises(), 7, 1.5))


class Text(str):
    """Text that cannot be cut."""

    def __getitem__(self, key: Any) -> str:
        raise OSError

    def __len__(self) -> int:
        raise OSError


class Written:
    def __repr__(self) -> str:
        return Text("as it is")


def test_a_repr_that_is_text_of_its_own_kind() -> None:
    assert short(Written()) == "as it is"
    assert short([Written(), Text("text")]) == "[as it is, 'text']"
    assert shortened(safe_repr(Written()), 5) == "as i…"


def test_a_destructor_is_not_given_up_with_the_repr_that_it_strikes() -> None:
    done = []

    class Resource:
        def __del__(self) -> None:
            begun = monotonic()
            while monotonic() < begun + 2 * PATIENCE:
                pass
            done.append("closed")

    class Slow:
        def __repr__(self) -> str:
            Resource()
            while True:
                pass

    assert "Slow" in short(Slow())
    assert done == ["closed"]
