"""The door from the core to its wings: what users find on a bus, a topic or an event, though it is made elsewhere.

A wing is imported when it is asked for, and only here; the core works without any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rxbus._bus import EventBus
    from rxbus.display import Marbles, Monitor, Top
    from rxbus.recording import Recording


class Shown:
    """Shows itself as a table in notebooks."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from rxbus.display import to_html

        return to_html(self)


def record(bus: EventBus, pattern: str, maxlen: int) -> Recording:
    from rxbus.recording import Recording

    return Recording(bus, pattern, maxlen)


def marbles(recording: Recording, **options: Any) -> Marbles:
    from rxbus.display import marbles

    return marbles(recording, **options)


def top(bus: EventBus) -> Top:
    from rxbus.display import top

    return top(bus)


def monitor(bus: EventBus) -> Monitor:
    from rxbus.display import monitor

    return monitor(bus)
