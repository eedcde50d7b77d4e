"""What is published and under which name: events, topics and patterns."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar, final, overload

import msgspec

from rxbus._short import short
from rxbus._wings import Shown
from rxbus.errors import InvalidTopic

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_LENGTH = 255
_TOKEN = r"[^\s.*>\x00-\x1f\x7f-\x9f]+"
_NAME = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_PATTERN = re.compile(rf"(?:(?:{_TOKEN}|\*)\.)*(?:{_TOKEN}|\*|>)")
_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")


class Event(Shown, msgspec.Struct, Generic[T_co], frozen=True):
    """What happened: an immutable record.

    Attributes:
        topic: The name of the topic it was published to.
        payload: What was published, any object; `None` and `False` are payloads like any other.
        id: A number that rises within a bus, in the order in which the observers of a topic see its events.
        time: When it was published, in seconds since the epoch.
        cause: The id of the event whose delivery published this one, else None.
    """

    topic: str
    payload: T_co
    id: int
    time: float
    cause: int | None = None

    def __repr__(self) -> str:
        """One line, however large the payload is."""
        payload = short(self.payload, 200)
        return f"Event(topic={self.topic!r}, payload={payload}, id={self.id}, time={self.time!r}, cause={self.cause})"


@final
class Topic(Generic[T]):
    """A topic's name together with the type of its payloads.

    It is frozen and hashable, compares by name with other topics (never with a string), and `str(topic)` is its name.
    The type serves type checkers and codecs; it is not checked at run time.

    Args:
        name: Non-empty tokens joined by `.`, at most 255 characters; no white space, control characters, `*` or `>`.
        payload_type: What its events carry. Where that is no plain class, type checkers want to be told:
            `PRICE: Topic[float | None] = Topic("price", float | None)`.

    Raises:
        InvalidTopic: `name` is not such a name.
    """

    __slots__ = ("_name", "_payload_type")
    _name: str
    _payload_type: type[T]

    @overload
    def __init__(self: Topic[object], name: str) -> None: ...
    @overload
    def __init__(self, name: str, payload_type: type[T]) -> None: ...
    @overload
    def __init__(self: Topic[Any], name: str, payload_type: Any) -> None: ...
    def __init__(self, name: str, payload_type: type[Any] = object) -> None:
        object.__setattr__(self, "_name", check_name(name))
        object.__setattr__(self, "_payload_type", payload_type)

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._name

    @property
    def payload_type(self) -> type[T]:
        """The type of its payloads."""
        return self._payload_type

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Topic is frozen: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Topic is frozen: cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Topic, (self._name, self._payload_type)

    def __eq__(self, other: object) -> bool:
        return self._name == other._name if isinstance(other, Topic) else NotImplemented

    def __hash__(self) -> int:
        return hash((Topic, self._name))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        kind = getattr(self._payload_type, "__name__", repr(self._payload_type))
        return f"Topic({self._name!r}, {kind})"


def name_of(topic: str | Topic[Any]) -> str:
    """Gives the name of what is asked for as a topic, unchecked where it is a string.

    Raises:
        InvalidTopic: It is neither a string nor a `Topic`.
    """
    if isinstance(topic, str):
        return str.__str__(topic)
    if isinstance(topic, Topic):
        return topic.name
    raise InvalidTopic(topic, "it is neither a string nor a Topic")


def check_name(name: object) -> str:
    """Gives back a valid topic name.

    Raises:
        InvalidTopic: `name` is none; the message says why.
    """
    if isinstance(name, str) and len(name) <= MAX_LENGTH and _NAME.fullmatch(name):
        return str.__str__(name)  # plain: a subclass may look, compare and hash otherwise
    raise InvalidTopic(name, _what_is_wrong(name, pattern=False))


def check_pattern(pattern: object) -> str:
    """Gives back a valid topic name or pattern (`*` is one token, `>` one or more, at the end).

    Raises:
        InvalidTopic: `pattern` is neither; the message says why.
    """
    if isinstance(pattern, str) and len(pattern) <= MAX_LENGTH and _PATTERN.fullmatch(pattern):
        return str.__str__(pattern)
    raise InvalidTopic(pattern, _what_is_wrong(pattern, pattern=True))


def is_pattern(name: str) -> bool:
    """Tells a pattern from a plain name, both being valid."""
    return "*" in name or ">" in name


def matcher(pattern: str) -> Callable[[str], bool]:
    """Makes the test of whether a topic name, which is valid, matches a pattern.

    Raises:
        InvalidTopic: It is neither a pattern nor a topic name.
    """
    tokens = {"*": r"[^.]+", ">": r".+"}
    parts = check_pattern(pattern).split(".")
    expression = re.compile(r"\.".join(tokens.get(token, re.escape(token)) for token in parts))
    return lambda name: expression.fullmatch(name) is not None


def _what_is_wrong(name: object, *, pattern: bool) -> str:
    if not isinstance(name, str):
        return "a topic name is a string"
    if len(name) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    if _CONTROL.search(name):
        return "it holds white space or a control character"
    if "" in name.split("."):
        return "it has an empty token"
    if pattern:
        return "'*' and '>' stand alone as tokens, '>' only as the last one"
    return "'*' and '>' are for patterns, which one can subscribe to but not publish to"
