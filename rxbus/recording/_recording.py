"""Recording: what `bus.record` gives."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from reactivex import abc

from rxbus import Event, EventBus, InvalidArgument, Topic, _wings
from rxbus.recording._causes import Causes
from rxbus.recording._file import load, save
from rxbus.recording._frames import to_dataframe
from rxbus.recording._perfetto import write_trace
from rxbus.recording._records import Delivery, Passage, Tape
from rxbus.recording._replay import Replay, play
from rxbus.recording._ring import Ring

if TYPE_CHECKING:
    from pandas import DataFrame

    from rxbus.display import Marbles


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
        clock = bus.scheduler.clock
        super().__init__(pattern, maxlen, time if clock is None else lambda: clock.seconds)
        self._attachment: Callable[[], _Attachment | None] = weakref.ref(_Attachment(self, bus))

    @classmethod
    def load(cls, path: str | os.PathLike[str], topics: Iterable[Topic[Any]] = ()) -> Recording:
        """Loads what `save` has written.

        Payloads come back as what JSON has: a struct as a `dict`, a tuple as a `list`, a `datetime` as a `str`; what
        could not be written as `Unencodable`. A file that is truncated or damaged is loaded as far as it is whole, and
        a `DamagedRecording` warning says which lines are not, and how much is missing.

        Args:
            path: The file.
            topics: Topics whose payloads are to be made what their `payload_type` says.

        Raises:
            NotARecording: It is none, or one of a later version.
            InvalidArgument: A payload is not what its topic says; or a topic is a mere name, which says nothing.
            OSError: It cannot be read.
        """
        return cls._of(load(Path(path), dict(map(_typed, topics))))

    @classmethod
    def _of(cls, tape: Tape) -> Recording:
        """Makes one that is over, of what it holds."""
        recording = cls.__new__(cls)
        Ring.__init__(recording, tape.pattern, tape.maxlen)
        recording.wind(tape)
        recording._attachment = lambda: None
        return recording

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
        self.freeze()  # also where the bus has gone without being closed
        attachment = self._attachment()
        if attachment is not None:
            attachment.end()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, as JSON lines; a file that is there is replaced once all is written.

        Payloads are written as msgspec does (structs, dataclasses, dates, …). What JSON cannot hold (a socket, half a
        character, a NaN) is kept as its repr, and marked.

        Raises:
            OSError: It cannot be written, for the disk is full perhaps; what was there is as it was.
        """
        tape = self.tape()
        save(tape if tape.ended is not None else msgspec.structs.replace(tape, ended=self._now()), Path(path))

    def replay(
        self,
        bus: EventBus,
        speed: float = 1.0,
        *,
        scheduler: abc.SchedulerBase | None = None,
        causes: Literal["all", "outermost"] = "all",
    ) -> Replay:
        """Publishes the recorded payloads on a bus: on their topics, in their order, at their distances in time.

        All of them are published, by default: a recording cannot know what handlers there are, and on a bus without any
        (in a notebook, for a chart) everything has to come from it. On a bus with the handlers that were there when it
        was recorded, ask for the outermost ones: what those published, they will publish again.

        Observers that fail do not end it. Times are kept as far as the bus takes no longer; what is late follows at
        once. Ctrl-C ends it between two events, or in the midst of one. Events whose topics are none, as in a damaged
        file, are left out.

        Args:
            bus: Where to publish.
            speed: How many times as fast; `math.inf` is at once.
            scheduler: What it runs on, in virtual time perhaps (`TestScheduler`): then this returns at once, and the
                replay goes on as the scheduler does. By default it is real time, and the calling thread waits.
            causes: Everything, or only events whose causes are not recorded.

        Returns:
            How far it has come, and what has failed; its `dispose` ends it.

        Raises:
            InvalidArgument: `speed` is no number above zero, or `causes` none of the two.
            BusClosed: The bus has been closed, or is closed meanwhile.
            EventLoopBlocked: It runs on the very event loop that has to run a handler, as in a notebook's cell:
                `await asyncio.to_thread(recording.replay, bus)` waits for async handlers, too.
        """
        return play(self.tape().events, bus, speed, scheduler, causes)

    def causes(self) -> Causes:
        """Gives the trees of which event caused which; `print` shows them."""
        return Causes(self.tape().events)

    def to_dataframe(self, of: Literal["events", "deliveries"] = "events") -> DataFrame:
        """Makes a pandas data frame, with a row for each event or for each delivery.

        Events have the columns `id` (the index), `topic`, `payload`, `time` (UTC), `cause` (the id, or missing),
        `observers` (how many deliveries have ended), `acknowledged`, `failed` and `latency` (seconds from the publish
        to the end of the last delivery, or missing). Deliveries have `event`, `topic`, `observer`, `start` and `end`
        (UTC), `duration` (seconds), `thread` and `error`.

        Raises:
            MissingExtra: pandas is not installed.
            InvalidArgument: `of` is none of the two.
        """
        return to_dataframe(self.tape(), of)

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Writes a trace that https://ui.perfetto.dev opens, or `chrome://tracing`.

        It has a track for each topic, with a slice from each publish to the end of its last delivery; a track for each
        thread, with the deliveries; and an arrow from each cause to its effects. What overlaps without being one in the
        other goes to a further track of the same name.

        Raises:
            OSError: It cannot be written; what was there is as it was.
        """
        write_trace(self.tape(), Path(path))

    def marbles(self, **options: Any) -> Marbles:
        """Draws it as a marble diagram, as it is now; see `rxbus.display.marbles` for the options.

        Notebooks show what this gives as a picture, `print` as text.
        """
        return _wings.marbles(self, **options)

    def to_svg(self, **options: Any) -> str:
        """Draws it as a marble diagram, as SVG; see `rxbus.display.marbles` for the options."""
        return self.marbles(**options).svg

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "going on" if self.ended is None else f"{self.ended - self.began:.3f} s"
        return f"<Recording {self.pattern!r}, {state}, events: {self.count()}, dropped: {self.dropped}>"


def _typed(topic: Topic[Any]) -> tuple[str, type]:
    if not isinstance(topic, Topic):
        raise InvalidArgument(f"topics are given with the type of their payloads, as Topic(name, type), not {topic!r}")
    return topic.name, topic.payload_type


class _Attachment:
    """What a recording has attached to its bus.

    The bus keeps it, by what it calls at its end; the recording refers to it weakly, or it would keep the bus.
    """

    def __init__(self, recording: Recording, bus: EventBus) -> None:
        self._recording = recording
        self._traced = bus.trace(recording)
        self._at_close = bus.on_close(self.end)

    def end(self) -> None:
        self._recording.freeze()
        self._traced.dispose()
        self._at_close.dispose()
