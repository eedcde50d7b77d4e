"""Recording: what `bus.record` gives."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

from rxbus import Event, EventBus, _wings
from rxbus.recording._records import Delivery, Passage
from rxbus.recording._ring import Ring


class Recording(Ring, _wings.Shown):
    """The events of a bus that match a pattern, and what has become of them.

    It is a ring: of more than `maxlen` events it keeps the latest, and the deliveries and passages of those; the others
    it counts. Payloads are kept as they are. It ends when it is stopped, with its `with` block, or with the bus; until
    then, the bus keeps it alive, though never the other way round.

    Args:
        bus: What is recorded.
        pattern: A topic's name or a pattern; `>` is everything.
        maxlen: How many events are kept at most.

    Attributes:
        pattern: As given.
        maxlen: As given.
        began: When it began, in seconds since the epoch.
        ended: When it ended; None as long as it goes on.
        dropped: How many events the ring has let go of.
        dropped_passages: How many passages it has let go of because there were more than ten per event.

    Raises:
        InvalidTopic: `pattern` is neither a pattern nor a topic's name.
        InvalidArgument: `maxlen` is less than 1.
        BusClosed: The bus has been closed.
    """

    def __init__(self, bus: EventBus, pattern: str = ">", maxlen: int = 100_000) -> None:
        super().__init__(pattern, maxlen)
        self._attachment = weakref.ref(_Attachment(self, bus))

    @property
    def events(self) -> list[Event[Any]]:
        """The events that are kept, in order of their ids."""
        return [*self.tape().events]

    @property
    def deliveries(self) -> list[Delivery]:
        """The deliveries of the events that are kept, as far as they have ended, in the order in which they began."""
        return [*self.tape().deliveries]

    @property
    def passages(self) -> list[Passage]:
        """What has passed stages for the events that are kept, or for none, in order of time."""
        return [*self.tape().passages]

    def stop(self) -> None:
        """Ends it: nothing is recorded any more, nor is what is still open. A second call does nothing."""
        self.freeze()
        attachment = self._attachment()
        if attachment is not None:
            attachment.end()

    def to_svg(self, **options: Any) -> str:
        """Draws it as a marble diagram; see `rxbus.display.marbles` for the options."""
        return _wings.svg(self, **options)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "going on" if self.ended is None else f"{self.ended - self.began:.3g} s"
        return f"<Recording {self.pattern!r}, {state}, events: {self.count()}, dropped: {self.dropped}>"


class _Attachment:
    """What a recording has attached to its bus.

    The bus keeps it, by what it calls at its end; the recording refers to it weakly, or it would keep the bus. Nor does
    the bus keep the recording by it, which may have been detached meanwhile by a cell that ran again.
    """

    def __init__(self, recording: Recording, bus: EventBus) -> None:
        self._recording = weakref.ref(recording)
        self._traced = bus.trace(recording)
        self._at_close = bus.on_close(self.end)

    def end(self) -> None:
        self._traced.dispose()
        self._at_close.dispose()
        recording = self._recording()
        if recording is not None:
            recording.freeze()
