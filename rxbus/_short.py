"""Text for people out of any object: short, on one line, and harmless whatever the object does."""

from __future__ import annotations

import array
import dataclasses
import sys
import unicodedata
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from types import FrameType
from typing import Any

import msgspec

PATIENCE = 0.1  # seconds for one object's own `__repr__`
DEPTH = 6
ELLIPSIS = "…"
_SCALARS = (int, float, complex, bool, type(None))
_LARGE = 256  # bits; longer integers are costly to write in decimal, and nobody reads them


def short(value: object, limit: int = 80) -> str:
    """Gives an object's repr, shortened to a number of characters; see `Shortener`."""
    return Shortener()(value, limit)


def plain(text: str) -> str:
    """Escapes what is no visible character, as `repr` does: control characters, marks of direction, surrogates.

    Of combining characters that follow each other two are kept: stacks of them would tower above the line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_calm(text if text.isprintable() else map(_visible, text)))


def clip(text: str, limit: int) -> str:
    """Shortens a text to a number of characters."""
    return text if len(text) <= limit else text[: limit - 1] + ELLIPSIS


class Shortener:
    """Writes reprs that are short, for one picture or table.

    Containers and records are written item by item, and no further than there is room. Other objects are asked for
    their own repr. One that raises is told by its type; a `__repr__` that takes too long is given up, and its type is
    not asked again. (Given up is what runs as Python code: a call in C, as of `time.sleep`, has to return first.)
    """

    def __init__(self) -> None:
        self._slow: set[type] = set()

    def __call__(self, value: object, limit: int = 80) -> str:
        """Gives an object's repr on one line of so many characters at the most."""
        return clip(plain(self._text(value, limit + 1, 0)[: limit + 1]), limit)

    def _text(self, value: Any, room: int, depth: int) -> str:
        kind = type(value)
        try:
            write = kind.__repr__
            if kind in _SCALARS and not (kind is int and value.bit_length() > _LARGE):
                return repr(value)
            if write in _PARTS:
                if depth == DEPTH:
                    return ELLIPSIS
                opening, parts, closing = _PARTS[write](value, room)
            elif _is_generated(kind, write):
                opening, parts, closing = _fields(value, (one.name for one in dataclasses.fields(value) if one.repr))
            else:
                return self._own(value)
            return self._join(opening, parts, closing, room, depth)
        except _TooSlow:
            self._slow.add(kind)
            return f"<{kind.__name__}: its repr takes too long>"
        except Exception as error:  # whatever the object does is no failure of who looks at it
            return f"<{kind.__name__}: its repr raised {type(error).__name__}>"

    def _join(self, opening: str, parts: Iterable[Any], closing: str, room: int, depth: int) -> str:
        text, separator = opening, ""
        for part in parts:
            if len(text) > room:
                return text
            text += separator
            for piece in part if type(part) is _Pair else (part,):
                text += piece if type(piece) is _Literal else self._text(piece, room - len(text), depth + 1)
            separator = ", "
        return text + closing

    def _own(self, value: Any) -> str:
        kind = type(value)
        if kind in self._slow:
            raise _TooSlow
        return str.__str__(_in_time(lambda: repr(value)))  # plain: a subclass may be cut and joined otherwise


class _Literal(str):
    """A part of a repr that is written as it is."""


class _Pair(tuple[Any, ...]):
    """Pieces of a repr with nothing in between."""


class _TooSlow(BaseException):
    """A repr has been given up; no `Exception`, which it might catch."""


def _in_time(call: Callable[[], str]) -> str:
    # Nothing but a trace function stops Python code on the thread where it runs; another thread could not be ended, and
    # is not where an object may expect to be used.
    end, base = monotonic() + PATIENCE, sys._getframe()

    def watch(frame: FrameType, what: str, argument: object) -> Any:
        if monotonic() > end and not _is_destructor(frame, base):
            raise _TooSlow
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return call()
    finally:
        sys.settrace(before)


def _is_destructor(frame: FrameType, base: FrameType) -> bool:
    """Whether the garbage collector runs a destructor in the midst of a repr: a stranger's, to be let be."""
    one: FrameType | None = frame
    while one is not None and one is not base:
        if one.f_code.co_name == "__del__":
            return True
        one = one.f_back
    return False


def _is_generated(kind: type, write: object) -> bool:
    """Whether a `__repr__` is the one that `dataclass` has made."""
    code = getattr(getattr(write, "__wrapped__", None), "__code__", None)
    return dataclasses.is_dataclass(kind) and getattr(code, "co_filename", None) == "<string>"


_Parts = tuple[str, Iterable[Any], str]


def _string(value: Any, room: int) -> _Parts:
    kind: Any = next(kind for kind in (str, bytes, bytearray) if isinstance(value, kind))
    return "", [_Literal(kind.__repr__(kind.__getitem__(value, slice(room))))], ""


def _integer(value: Any, room: int) -> _Parts:
    bits = int.bit_length(value)
    return "", [_Literal(int.__repr__(value) if bits <= _LARGE else f"<int of {bits:,} bits>")], ""


def _list(value: Any, room: int) -> _Parts:
    return "[", list.__iter__(value), "]"


def _tuple(value: Any, room: int) -> _Parts:
    return "(", tuple.__iter__(value), ",)" if tuple.__len__(value) == 1 else ")"


def _set(value: Any, room: int) -> _Parts:
    name, length = type(value).__name__, len(value)
    if name == "set" and length:
        return "{", iter(value), "}"
    return (f"{name}({{", iter(value), "})") if length else (f"{name}(", (), ")")


def _dict(value: Any, room: int) -> _Parts:
    return "{", _items(value), "}"


def _named_dict(value: Any, room: int) -> _Parts:
    return f"{type(value).__name__}({{", _items(value), "})"


def _items(value: Any) -> Iterator[_Pair]:
    return (_Pair((key, _Literal(": "), one)) for key, one in dict.items(value))


def _deque(value: Any, room: int) -> _Parts:
    return f"{type(value).__name__}([", iter(value), "])"


def _array(value: Any, room: int) -> _Parts:
    return f"array({value.typecode!r}, [", iter(value), "])"


def _struct(value: Any, room: int) -> _Parts:
    return _fields(value, type(value).__struct_fields__)


def _fields(value: Any, names: Iterable[str]) -> _Parts:
    fields = (_Pair((_Literal(f"{name}="), getattr(value, name))) for name in names)
    return f"{type(value).__name__}(", fields, ")"


def _error(value: Any, room: int) -> _Parts:
    return f"{type(value).__name__}(", iter(value.args), ")"


# What is written here, by the `__repr__` that would be called: subclasses that have their own are not among them.
_PARTS: dict[Any, Callable[[Any, int], _Parts]] = {
    str.__repr__: _string,
    bytes.__repr__: _string,
    bytearray.__repr__: _string,
    int.__repr__: _integer,
    list.__repr__: _list,
    tuple.__repr__: _tuple,
    set.__repr__: _set,
    frozenset.__repr__: _set,
    dict.__repr__: _dict,
    OrderedDict.__repr__: _named_dict,
    defaultdict.__repr__: _named_dict,
    Counter.__repr__: _named_dict,
    deque.__repr__: _deque,
    array.array.__repr__: _array,
    msgspec.Struct.__repr__: _struct,
    BaseException.__repr__: _error,
}


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def _calm(chars: Iterable[str]) -> Iterator[str]:
    stacked = 0
    for char in chars:
        stacked = stacked + 1 if unicodedata.combining(char[0]) else 0
        if stacked <= 2:
            yield char
