"""Events, topics, names and patterns."""

from __future__ import annotations

import pickle
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rxbus import Event, EventBus, InvalidTopic, Topic
from rxbus._event import MAX_LENGTH, check_name, check_pattern, is_pattern, matcher, name_of

SPACE = {c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()}


# -- a reference, token by token


def valid_token(token: str) -> bool:
    return bool(token) and not any(c in SPACE or unicodedata.category(c) == "Cc" or c in "*>" for c in token)


def valid_name(name: str) -> bool:
    return len(name) <= MAX_LENGTH and all(map(valid_token, name.split(".")))


def valid_pattern(pattern: str) -> bool:
    *first, last = pattern.split(".")
    inner = all(token == "*" or valid_token(token) for token in first)
    return len(pattern) <= MAX_LENGTH and inner and (last in ("*", ">") or valid_token(last))


def matches(pattern: str, name: str) -> bool:
    wanted, given = pattern.split("."), name.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(given) > i
        if i == len(given) or token not in ("*", given[i]):
            return False
    return len(wanted) == len(given)


# Few tokens, so that names and patterns meet; some of them mean something to regular expressions.
words = st.sampled_from(["a", "b", "a+", "[^.]", "x|y", "(", "\\", "$", "ü", "-"])
names = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(words | st.just("*"), max_size=3),
    st.sampled_from([[">"], ["*"], ["a"]]),
)
# Anything, but often of characters that matter.
texts = st.text(st.sampled_from("ab.*> \t\n\x00\x7f\x85\xa0\u2003\u200bü") | st.characters(), max_size=12)


# -- Event


def test_an_event_is_a_record() -> None:
    event = Event("a", 1, 2, 3.5)
    assert (event.topic, event.payload, event.id, event.time, event.cause) == ("a", 1, 2, 3.5, None)
    assert Event("a", 1, 2, 3.5, cause=1).cause == 1


@pytest.mark.parametrize("field", ["topic", "payload", "id", "time", "cause"])
def test_an_event_is_frozen_and_equal_by_all_fields(field: str) -> None:
    event = Event("a", 1, 2, 3.5, 1)
    values: dict[str, Any] = {name: getattr(event, name) for name in event.__struct_fields__}
    assert event == Event(**values)
    assert event != Event(**{**values, field: "other"})
    with pytest.raises(AttributeError):
        setattr(event, field, "other")


def test_an_event_is_slotted() -> None:
    event = Event("a", 1, 2, 3.5)
    assert not hasattr(event, "__dict__")
    with pytest.raises(AttributeError):
        event.other = 1  # type: ignore[attr-defined]


def test_an_event_is_hashable_with_its_payload_and_pickles() -> None:
    event = Event("a", (1,), 2, 3.5, 1)
    assert hash(event) == hash(Event("a", (1,), 2, 3.5, 1))
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(TypeError):
        hash(Event("a", [], 2, 3.5))


@pytest.mark.parametrize("payload", [None, False, 0, "", (), float("nan")])
def test_any_object_is_a_payload(bus: EventBus, payload: object) -> None:
    seen: list[Event[Any]] = []
    bus.subscribe("a").subscribe(seen.append)
    receipt = bus.publish("a", payload)
    assert receipt.acknowledged == 1
    assert seen == [receipt.event]
    assert seen[0].payload is payload


# -- Topic


def test_a_topic_is_a_name_with_a_type() -> None:
    topic = Topic("prices.eur", float)
    assert (topic.name, topic.payload_type, str(topic)) == ("prices.eur", float, "prices.eur")
    assert f"{topic}" == "prices.eur"
    assert repr(topic) == "Topic('prices.eur', float)"
    assert Topic("prices").payload_type is object
    assert repr(Topic("a", int | None)).startswith("Topic('a', ")  # type: ignore[arg-type]


def test_topics_compare_by_name_and_never_with_a_string() -> None:
    assert Topic("a", int) == Topic("a", str)
    assert hash(Topic("a", int)) == hash(Topic("a", str))
    assert Topic("a") != Topic("b")
    assert Topic("a") != "a"
    assert len({Topic("a"), "a", Topic("a", int)}) == 2


@pytest.mark.parametrize("attribute", ["name", "payload_type", "_name", "_payload_type", "other"])
def test_a_topic_is_frozen(attribute: str) -> None:
    topic = Topic("a", int)
    with pytest.raises(AttributeError):
        setattr(topic, attribute, "b")
    with pytest.raises(AttributeError):
        delattr(topic, attribute)
    assert (topic.name, topic.payload_type) == ("a", int)


def test_a_topic_pickles() -> None:
    twin = pickle.loads(pickle.dumps(Topic("a.b", int)))
    assert twin == Topic("a.b")
    assert twin.payload_type is int


def test_wherever_a_topic_is_asked_for_a_name_will_do(bus: EventBus) -> None:
    topic = Topic("a.b", int)
    seen: list[int] = []
    subscription = bus.subscribe("a.b")
    subscription.only_payload().subscribe(seen.append)
    bus.publish(topic, 1)
    bus.publish("a.b", 2)
    bus.publisher(topic).on_next(3)
    assert seen == [1, 2, 3]
    assert bus.topic(topic) is bus.topic("a.b")
    bus.unsubscribe(topic, subscription)
    assert bus.publish(topic, 4).acknowledged == 0


# -- names

WRONG_NAMES: list[Any] = [
    "", ".", "a.", ".a", "a..b", "a b", "a\n", "\na", "a\x00", "a\x7f", "a\x85b", "a\xa0b", "a\u2028b",
    "*", ">", "a.*", "a.>", "a*", "a>b", "x" * 256, "x." * 127 + "xx", None, False, 1, b"a", ["a"], ("a",), float,
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG_NAMES, ids=lambda name: ascii(name)[:20])
def test_a_wrong_name_is_refused_everywhere(bus: EventBus, name: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: Topic(name),
        lambda: bus.publish(name),
        lambda: bus.topic(name),
        lambda: bus.publisher(name),
    ]
    for call in calls:
        with pytest.raises(InvalidTopic) as caught:
            call()
        assert caught.value.topic == name
        assert isinstance(caught.value, ValueError)
    assert bus.topics == {}


@pytest.mark.parametrize(
    "pattern",
    ["", "a..*", ">.a", "*.>.a", "a*", "*a", "a>", "a.>b", "**", "* ", "a .>", "x" * 254 + ".>", None, 1, b"*"],
    ids=lambda pattern: ascii(pattern)[:20],
)
def test_a_wrong_pattern_is_refused(bus: EventBus, pattern: Any) -> None:
    with pytest.raises(InvalidTopic):
        bus.subscribe(pattern)
    with pytest.raises(InvalidTopic):
        bus.on(pattern)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (1, "string"),
        ("x" * 256, "255"),
        ("a b", "white space"),
        ("a\x1b", "control character"),
        ("a..b", "empty token"),
        ("a.>", "patterns"),
    ],
)
def test_the_reason_is_told(name: Any, why: str) -> None:
    with pytest.raises(InvalidTopic, match=why):
        check_name(name)


def test_the_reason_is_told_for_patterns() -> None:
    with pytest.raises(InvalidTopic, match="stand alone"):
        check_pattern("a.b*")
    with pytest.raises(InvalidTopic, match="neither a string nor a Topic"):
        name_of(3)  # type: ignore[arg-type]


def test_the_longest_names() -> None:
    assert check_name("x" * MAX_LENGTH) == "x" * 255
    assert check_name("ü" * 255) == "ü" * 255
    assert check_pattern("x" * 253 + ".>")


def test_a_name_of_a_subclass_of_str_becomes_a_plain_string() -> None:
    class Name(str):
        __slots__ = ()

    assert type(Topic(Name("a")).name) is str


@given(names)
def test_valid_names_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == check_pattern(name) == Topic(name).name == name
    assert not is_pattern(name)


@given(texts)
@example("a\n")
@example("\x1f")
@example("\u180e")
def test_names_are_judged_as_by_the_reference(text: str) -> None:
    for check, valid in ((check_name, valid_name), (check_pattern, valid_pattern)):
        if valid(text):
            assert check(text) == text
        else:
            with pytest.raises(InvalidTopic) as caught:
                check(text)
            assert caught.value.topic == text


@given(patterns, names)
@example("a.>", "a")
@example("a.*", "a.")
@example("*", "a.b")
def test_patterns_match_as_by_the_reference(pattern: str, name: str) -> None:
    assume(valid_name(name))
    assert check_pattern(pattern) == pattern
    assert is_pattern(pattern) == any(token in ("*", ">") for token in pattern.split("."))
    assert matcher(pattern)(name) == matches(pattern, name)


@given(patterns, st.text(st.characters(exclude_characters=".*>"), min_size=1, max_size=3))
def test_a_star_takes_any_token(pattern: str, token: str) -> None:
    assume(valid_token(token))
    name = pattern.replace("*", token).replace(">", f"{token}.{token}")
    assert matcher(pattern)(name)


@given(st.lists(patterns | names, max_size=6), st.lists(names, max_size=8))
def test_every_observer_gets_the_topics_of_its_pattern(wanted: list[str], published: list[str]) -> None:
    """Half of the topics are there before the observers attach, all others are made by being published to."""
    with EventBus() as bus:
        for name in published[::2]:
            bus.topic(name)
        seen: list[list[str]] = [[] for _ in wanted]
        for pattern, mine in zip(wanted, seen, strict=True):
            bus.subscribe(pattern).subscribe(lambda event, mine=mine: mine.append(event.topic))
        acknowledged = [bus.publish(name).acknowledged for name in published]
        for pattern, mine in zip(wanted, seen, strict=True):
            assert mine == [name for name in published if matches(pattern, name)]
        assert acknowledged == [sum(matches(pattern, name) for pattern in wanted) for name in published]
