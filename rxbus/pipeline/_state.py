"""The component that keeps what steps report. It knows the other parts through the bus alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rxbus import Event, EventBus, InvalidArgument
from rxbus.pipeline._build import about
from rxbus.pipeline._disk import DiskStore
from rxbus.pipeline._results import TIMESTAMPS, Result, StepId, is_time, without_life
from rxbus.pipeline._store import MemoryStore, Metadata, Store
from rxbus.pipeline._structure import StepStructure
from rxbus.pipeline.errors import UnknownBuild
from rxbus.pipeline.topics import (
    PIPELINE_FINISHED,
    STEP_RESULT_UPDATE_CONSUMED,
    STEP_RESULT_UPDATED,
    PipelineFinished,
    StepResultUpdated,
    decode,
    encode,
)

logger = logging.getLogger("rxbus.pipeline")


class State:
    """What is known of builds, those of earlier processes too, where there is a home.

    It takes in every `STEP_RESULT_UPDATED`, and publishes the same payload as `STEP_RESULT_UPDATE_CONSUMED` when it
    is there to be read. What is read back is what JSON makes of it, from memory too: tuples are lists. Of a result
    that JSON cannot hold, what it can is kept. What cannot be written is tried again with what comes next, and by
    `close`. Safe to use from several threads, and a home from several processes.

    Args:
        bus: Where updates come from.
        home: The directory that keeps the builds; None: they end with this object.
        max_builds: How many builds are kept when one ends, those with the highest numbers; None: all. Builds that are
            running are never removed.

    Raises:
        InvalidArgument: `max_builds` is less than 1.
        OSError: There is no home, and none can be made.
        BusClosed: The bus has been closed.
    """

    def __init__(self, bus: EventBus, home: Path | None, max_builds: int | None) -> None:
        if max_builds is not None and (not isinstance(max_builds, int) or max_builds < 1):
            raise InvalidArgument(f"max_builds is at least 1, not {max_builds!r}")
        self._bus = bus
        self._max_builds = max_builds
        self._store: Store = MemoryStore() if home is None else _opened(home)
        self._attached = [
            bus.subscribe(STEP_RESULT_UPDATED, name="pipeline state").subscribe(self._on_update),
            bus.subscribe(PIPELINE_FINISHED, name="pipeline state").subscribe(self._on_finished),
        ]

    def new_build(self, structure: tuple[StepStructure, ...], args: Mapping[str, Any] | None = None) -> int:
        """Makes a build and gives its number: the next one, whoever else makes builds in this home.

        Args:
            structure: The steps that it will run.
            args: What it is started with, kept for builds that go on from it.

        Raises:
            PipelineClosed: `close` has been called.
            OSError: The build cannot be written. Its number is not used again.
        """
        kept = {key: value for key, value in (args or {}).items() if _can_be_kept(key, value)}
        lost = [str(key) for key in args or {} if key not in kept]
        return self._store.create(structure, encode(Metadata(kept, lost)))

    def args(self, build_number: int) -> dict[str, Any]:
        """Gives what a build was started with, but for what JSON cannot hold; the log names that.

        Raises:
            UnknownBuild: There is no such build, or not any more.
            DamagedState: It cannot be read.
        """
        metadata = self._store.metadata(build_number)
        if metadata.lost_args:
            lost = ", ".join(map(repr, metadata.lost_args))
            logger.warning("build %d was started with %s, which JSON could not keep", build_number, lost)
        return metadata.args

    def build_numbers(self) -> list[int]:
        """Gives the numbers of all builds, in rising order."""
        return self._store.numbers()

    def structure(self, build_number: int) -> tuple[StepStructure, ...]:
        """Gives the steps that a build was made with.

        Raises:
            UnknownBuild: There is no such build, or not any more.
            DamagedState: They cannot be read.
        """
        return self._store.structure(build_number)

    def build_path(self, build_number: int) -> Path | None:
        """Gives a build's directory; None where builds are in memory.

        Raises:
            UnknownBuild: There is no such build, or not any more.
        """
        return self._store.path(build_number)

    def step_results(self, build_number: int) -> dict[StepId, Result]:
        """Gives the latest result of each step of a build, as copies.

        A step that was running or waiting when its build ended, or the process that ran it, is `dead`.

        Raises:
            UnknownBuild: There is no such build, or not any more.
            DamagedState: They cannot be read.
        """
        results, running = self._store.read(build_number)
        return results if running else without_life(results)

    def end_build(self, build_number: int) -> None:
        """Ends a build: what has not ended in it is dead. Where that cannot be written, the log tells."""
        try:
            self._store.finish(build_number)
        except Exception:  # a full disk, or what fails otherwise: builds go on
            logger.exception("the end of build %d cannot be written", build_number)

    def close(self) -> None:
        """Takes in nothing more; builds that are running end as they are, and can still be read.

        A second call does nothing.
        """
        for attached in self._attached:
            attached.dispose()
        self._store.close()

    def _on_update(self, event: Event[StepResultUpdated]) -> None:
        """Called for one update at a time, so that what it has read of a step is still true when it writes."""
        try:
            self._take_in(event.payload)
        except UnknownBuild as error:
            logger.info("an update is left out, as it is of no build that was started here: %s", error)
        except Exception:  # anybody may publish anything, and the disk may be full
            logger.exception("an update is not in the state: %s", about(event.payload))
        else:
            self._tell(event.payload)

    def _take_in(self, update: StepResultUpdated) -> None:
        number, step_id = update.build_number, update.step_id
        now = datetime.now(UTC)
        first = self._store.first_update(number, step_id) or now
        times: dict[str, datetime] = dict(zip(TIMESTAMPS, (first, now), strict=True))
        self._store.put(number, step_id, _encoded(update, times))

    def _tell(self, update: StepResultUpdated) -> None:
        try:
            self._bus.publish(STEP_RESULT_UPDATE_CONSUMED, update)
        except KeyboardInterrupt:  # meant for whoever has the terminal
            raise
        except BaseException:  # of an observer: the update has been taken in
            logger.exception("an observer of %r has failed", STEP_RESULT_UPDATE_CONSUMED.name)

    def _on_finished(self, event: Event[PipelineFinished]) -> None:
        self.end_build(getattr(event.payload, "build_number", 0))  # anybody may publish anything
        self._truncate()

    def _truncate(self) -> None:
        if self._max_builds is None:
            return
        try:
            self._store.truncate(self._max_builds)
        except Exception:  # they stay until the next time
            logger.exception("old builds cannot be removed")


def _opened(home: Path) -> DiskStore:
    store = DiskStore(home)
    try:
        store.tidy()
    except OSError:  # it can be read nevertheless
        logger.exception("what crashed processes have left in %s stays", home)
    return store


def _encoded(update: StepResultUpdated, times: Mapping[str, datetime]) -> bytes:
    """Gives a result, with its times, as JSON; leaves out what JSON cannot hold, or what could not be read back."""
    result = {key: value for key, value in update.step_result.items() if not _is_no_time(key, value)}
    times = {key: time for key, time in times.items() if key not in result}
    try:
        return _checked({**result, **times})
    except Exception:  # whatever it is that the step has put into it
        kept = {key: value for key, value in result.items() if _can_be_kept(key, value)}
    lost = ", ".join(repr(key) for key in result.keys() - kept.keys())
    logger.error("build %s, step %s: JSON cannot hold %s", update.build_number, update.step_id, lost)
    return _checked({**kept, **times})


def _is_no_time(key: str, value: Any) -> bool:
    return key in TIMESTAMPS and not is_time(value)


def _can_be_kept(key: str, value: Any) -> bool:
    try:
        _checked({key: value})
    except Exception:  # it is asked whether
        return False
    return True


def _checked(result: Result) -> bytes:
    data = encode(result)
    decode(data, dict)
    return data
