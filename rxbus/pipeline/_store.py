"""Where builds are kept, and the store that keeps them in memory.

Results are held as JSON in memory too, so that they are the same before and after a restart, and nobody's to change.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from rxbus.pipeline._results import Result, StepId, step_id_of, text_of
from rxbus.pipeline._structure import StepStructure
from rxbus.pipeline.errors import PipelineClosed, UnknownBuild
from rxbus.pipeline.topics import decode

T = TypeVar("T")

Structure = tuple[StepStructure, ...]


class Metadata(msgspec.Struct, frozen=True):
    """What is kept of a build besides its steps and their results.

    Attributes:
        args: What it was started with.
        lost_args: The names of those that JSON could not hold.
    """

    args: dict[str, Any] = {}
    lost_args: list[str] = []


class Store(Protocol):
    """Builds, by number. Only the store that made a build changes its results; safe to use from several threads."""

    @abstractmethod
    def create(self, structure: Structure, metadata: bytes) -> int:
        """Makes a build, which counts as running from now on, and gives its number.

        Raises:
            PipelineClosed: The store has been closed.
            OSError: It cannot be written. Its number is not used again.
        """

    @abstractmethod
    def numbers(self) -> list[int]:
        """Gives the numbers of all builds, in rising order."""

    @abstractmethod
    def structure(self, number: int) -> Structure:
        """Gives what a build was made with.

        Raises:
            UnknownBuild: There is none of that number.
            DamagedState: It cannot be read.
        """

    @abstractmethod
    def metadata(self, number: int) -> Metadata:
        """Gives what else was kept with a build.

        Raises:
            UnknownBuild: There is none of that number.
            DamagedState: It cannot be read.
        """

    @abstractmethod
    def path(self, number: int) -> Path | None:
        """Gives a build's directory, if builds have any.

        Raises:
            UnknownBuild: There is none of that number.
        """

    @abstractmethod
    def read(self, number: int) -> tuple[dict[StepId, Result], bool]:
        """Gives the results of a build, and whether it was running before they were read.

        Raises:
            UnknownBuild: There is none of that number.
            DamagedState: They cannot be read.
        """

    @abstractmethod
    def first_update(self, number: int, step_id: StepId) -> datetime | None:
        """Gives the time of a step's first update, if there has been one.

        Raises:
            UnknownBuild: This store has not made such a build, or it has been removed.
            DamagedState: It cannot be read.
        """

    @abstractmethod
    def put(self, number: int, step_id: StepId, result: bytes) -> None:
        """Takes a step's result in; returns when it is written.

        Raises:
            UnknownBuild: This store has not made such a build, or it has been removed.
            ValueError: It is not the id of a step.
            OSError: It is known here now, but cannot be written.
        """

    @abstractmethod
    def finish(self, number: int) -> None:
        """Ends a build, if it is one that runs here.

        Raises:
            OSError: Its results cannot be written as a whole; they can be read nevertheless.
        """

    @abstractmethod
    def truncate(self, keep: int) -> None:
        """Removes all builds but those with the highest numbers, and those that are running."""

    @abstractmethod
    def close(self) -> None:
        """Ends the builds that run here; no more can be made. A second call does nothing."""


class MemoryStore:
    """Builds that live as long as the store."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards all below; nothing is called under it
        self._last = 0
        self._closed = False
        self._running: set[int] = set()
        self._made: dict[int, tuple[Structure, bytes]] = {}
        self._results: dict[int, dict[StepId, bytes]] = {}

    def create(self, structure: Structure, metadata: bytes) -> int:
        with self._lock:
            if self._closed:
                raise PipelineClosed
            self._last += 1
            self._running.add(self._last)
            self._made[self._last] = structure, metadata
            self._results[self._last] = {}
            return self._last

    def numbers(self) -> list[int]:
        with self._lock:
            return list(self._results)

    def structure(self, number: int) -> Structure:
        with self._lock:
            return known(self._made, number)[0]

    def metadata(self, number: int) -> Metadata:
        with self._lock:
            data = known(self._made, number)[1]
        return decode(data, Metadata)

    def path(self, number: int) -> None:
        self.structure(number)

    def read(self, number: int) -> tuple[dict[StepId, Result], bool]:
        with self._lock:
            results, running = dict(known(self._results, number)), number in self._running
        return decoded(results), running

    def first_update(self, number: int, step_id: StepId) -> datetime | None:
        with self._lock:
            result = known(self._results, number).get(step_id)
        return first_update(result)

    def put(self, number: int, step_id: StepId, result: bytes) -> None:
        check(step_id)
        with self._lock:
            known(self._results, number)[step_id] = result

    def finish(self, number: int) -> None:
        with self._lock:
            self._running.discard(number)

    def truncate(self, keep: int) -> None:
        with self._lock:
            for number in set(list(self._results)[:-keep]) - self._running:
                del self._results[number], self._made[number]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._running.clear()


class _Times(msgspec.Struct):
    first_updated_at: datetime | None = None


def first_update(result: bytes | None) -> datetime | None:
    return None if result is None else msgspec.json.decode(result, type=_Times).first_updated_at


def decoded(results: Mapping[StepId, bytes | msgspec.Raw]) -> dict[StepId, Result]:
    return {step_id: decode(bytes(result), dict[str, Any]) for step_id, result in results.items()}


def check(step_id: StepId) -> None:
    """Refuses what would make a log unreadable."""
    if step_id_of(text_of(step_id)) != step_id:
        raise ValueError(f"{step_id!r} is not the id of a step")


def known(builds: Mapping[int, T], number: int) -> T:
    try:
        return builds[number]
    except (KeyError, TypeError):
        raise UnknownBuild(number) from None
