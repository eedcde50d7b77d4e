"""Where builds are kept: in memory, or on disk under a home directory that several processes may share.

    home/last-build-number              the highest number handed out; locked while a build is made or removed
    home/build-7/build-metadata.json
    home/build-7/pipeline-structure.json    written last: it makes the directory a build
    home/build-7/build-log.jsonl        while the build runs: one line per update, {step id: result}
    home/build-7/build.lock             while the build runs: locked by the process that runs it
    home/build-7/build-state.json       afterwards: {step id: result} of every step

Results are held as JSON in memory too, so that they are the same before and after a restart, and nobody's to change.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import msgspec

from rxbus.pipeline._results import Result, StepId
from rxbus.pipeline._structure import StepStructure
from rxbus.pipeline.errors import DamagedState, PipelineClosed, UnknownBuild
from rxbus.pipeline.topics import decode

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

Structure = tuple[StepStructure, ...]

LAST_NUMBER = "last-build-number"
METADATA = "build-metadata.json"
STRUCTURE = "pipeline-structure.json"
LOG = "build-log.jsonl"
STATE = "build-state.json"
LOCK = "build.lock"
REMOVED = ".rxbus-removed-"

BINARY = getattr(os, "O_BINARY", 0)  # Windows would write other ends of lines
DIRECTORY = re.compile("build-([1-9][0-9]*)")

logger = logging.getLogger("rxbus.pipeline")


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
        self._lock = threading.Lock()  # guards all below; nothing is called under it
        self._last = 0
        self._closed = False
        self._running: set[int] = set()
        self._structures: dict[int, Structure] = {}
        self._results: dict[int, dict[StepId, bytes]] = {}

    def create(self, structure: Structure, metadata: bytes) -> int:
        with self._lock:
            if self._closed:
                raise PipelineClosed
            self._last += 1
            self._running.add(self._last)
            self._structures[self._last] = structure
            self._results[self._last] = {}
            return self._last

    def numbers(self) -> list[int]:
        with self._lock:
            return list(self._results)

    def structure(self, number: int) -> Structure:
        with self._lock:
            return _known(self._structures, number)

    def path(self, number: int) -> None:
        self.structure(number)

    def read(self, number: int) -> tuple[dict[StepId, Result], bool]:
        with self._lock:
            results, running = dict(_known(self._results, number)), number in self._running
        return _decoded(results), running

    def first_update(self, number: int, step_id: StepId) -> datetime | None:
        with self._lock:
            result = _known(self._results, number).get(step_id)
        return _first_update(result)

    def put(self, number: int, step_id: StepId, result: bytes) -> None:
        _check(step_id)
        with self._lock:
            _known(self._results, number)[step_id] = result

    def finish(self, number: int) -> None:
        with self._lock:
            self._running.discard(number)

    def truncate(self, keep: int) -> None:
        with self._lock:
            for number in list(self._results)[:-keep]:
                if number not in self._running:
                    del self._results[number], self._structures[number]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._running.clear()


class DiskStore:
    """Builds in a directory.

    Args:
        home: The directory; made if there is none.

    Raises:
        OSError: It cannot be made. What is in it does not matter.
    """

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._home.mkdir(parents=True, exist_ok=True)
        self._making = threading.Lock()  # held while builds are made and removed, before the lock on the home's file
        self._closed = False  # under _making
        self._own: dict[int, _Build] = {}  # what was made here; changed under _making, looked up without
        _stores.add(self)

    def create(self, structure: Structure, metadata: bytes) -> int:
        with self._alone() as counter:
            if self._closed:
                raise PipelineClosed
            number = self._new_directory(counter)
            path = self._directory(number)
            build = _Build(path)
            try:
                _write_whole(path / METADATA, msgspec.json.format(metadata, indent=2))
                _write_whole(path / STRUCTURE, msgspec.json.format(msgspec.json.encode(structure), indent=2))
            except BaseException:
                build.abandon()
                raise
            self._own[number] = build
        return number

    def numbers(self) -> list[int]:
        return sorted(number for number in self._directories() if self._is_build(number))

    def structure(self, number: int) -> Structure:
        path = self.path(number) / STRUCTURE
        data = _read(path)
        if data is None:
            raise UnknownBuild(number)
        with _damage_named(path):
            return msgspec.json.decode(data, type=Structure)

    def path(self, number: int) -> Path:
        if not self._is_build(number):
            raise UnknownBuild(number)
        return self._directory(number)

    def read(self, number: int) -> tuple[dict[StepId, Result], bool]:
        build = self._own.get(number)
        held = build.held() if build is not None else None
        if held is not None:
            return _decoded(held[0]), held[1]
        path = self.path(number)
        running = _is_locked(path / LOCK)  # before: it may end, but what ended is complete
        results = _read_results(path)
        self.path(number)  # again: it may have been removed meanwhile
        return results, running

    def first_update(self, number: int, step_id: StepId) -> datetime | None:
        build = _known(self._own, number)
        result = build.result(step_id)
        if result is not None or build.running:  # asked last: what was held until then is complete
            return _first_update(result)
        return self.read(number)[0].get(step_id, {}).get("first_updated_at")

    def put(self, number: int, step_id: StepId, result: bytes) -> None:
        _check(step_id)
        build = _known(self._own, number)
        if not build.running:
            self.path(number)  # another process may have removed it
        build.put(step_id, result)

    def finish(self, number: int) -> None:
        build = self._own.get(number)
        if build is not None:
            build.finish()

    def truncate(self, keep: int) -> None:
        with self._alone():
            for number in self.numbers()[:-keep]:
                if not self._is_running(number):
                    self._take_away(number)
            removed = list(self._home.glob(REMOVED + "*"))  # also what a crash has left
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        with self._making:
            self._closed = True
            builds = list(self._own.values())
        for build in builds:
            try:
                build.finish()
            except OSError:
                logger.exception("the state of %s cannot be written as a whole; its log stays", build.path)

    def inherit(self) -> None:
        """In a forked child: the builds are the parent's, as are its locks."""
        for build in self._own.values():
            build.abandon()
        self._own = {}
        self._making = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """While it lasts, nobody else makes or removes builds; gives the open file of the last number."""
        with self._making:
            file = _locked(self._home / LAST_NUMBER)
            try:
                yield file
            finally:
                _unlock(file)

    def _new_directory(self, counter: int) -> int:
        noted = os.read(counter, 100).strip()
        number = max([int(noted) if noted.isdigit() else 0, *self._directories()])
        while True:
            number += 1
            with suppress(FileExistsError):  # something foreign, or a process that has no locks
                self._directory(number).mkdir()
                break
        text = b"%d\n" % number
        os.lseek(counter, 0, os.SEEK_SET)
        os.ftruncate(counter, os.write(counter, text))
        return number

    def _take_away(self, number: int) -> None:
        """Makes a build vanish at once, so that nobody finds half of it, or writes to it."""
        self._own.pop(number, None)
        try:
            os.rename(self._directory(number), Path(tempfile.mkdtemp(prefix=REMOVED, dir=self._home)) / "build")
        except OSError:
            logger.exception("build %s cannot be removed", number)

    def _directories(self) -> list[int]:
        """The numbers that are taken by builds, or by what a crash has left of one."""
        with os.scandir(self._home) as entries:
            found = [(DIRECTORY.fullmatch(entry.name), entry) for entry in entries]
            return [int(match[1]) for match, entry in found if match and entry.is_dir(follow_symlinks=False)]

    def _directory(self, number: int) -> Path:
        return self._home / f"build-{number}"

    def _is_build(self, number: int) -> bool:
        return isinstance(number, int) and number > 0 and (self._directory(number) / STRUCTURE).exists()

    def _is_running(self, number: int) -> bool:
        build = self._own.get(number)
        return (build is not None and build.running) or _is_locked(self._directory(number) / LOCK)


class _Build:
    """A build on disk, for the process that makes it: locked and with an open log until it is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running = True
        self._changing = threading.Lock()  # held while results change, here and on disk; no other is taken under it
        self._results: dict[StepId, bytes] | None = {}  # None: on disk only
        self._alive = _locked(path / LOCK)
        self._log = os.open(path / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o666)
        self._logged = 0

    def held(self) -> tuple[dict[StepId, bytes], bool] | None:
        """Gives the results and whether the build is running; nothing where they are on disk only."""
        with self._changing:
            return None if self._results is None else (dict(self._results), self.running)

    def result(self, step_id: StepId) -> bytes | None:
        """Gives one of the results that are held."""
        with self._changing:
            return (self._results or {}).get(step_id)

    def put(self, step_id: StepId, result: bytes) -> None:
        with self._changing:
            if self._results is None or not self.running:
                self._put_late(step_id, result)
                return
            self._results[step_id] = result
            self._append(_json({step_id: result}) + b"\n")

    def finish(self) -> None:
        with self._changing:
            if not self.running:
                return
            self.running = False
            os.close(self._log)
            try:
                self._compact(self._results or {})
            finally:
                _unlock(self._alive)
                with suppress(OSError):
                    (self.path / LOCK).unlink()

    def abandon(self) -> None:
        """Closes the files and writes nothing. A lock that another process shares stays."""
        if self.running:
            self.running = False
            os.close(self._log)
            os.close(self._alive)

    def _append(self, line: bytes) -> None:
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._log, left) :]
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._log, self._logged)  # half a line may be the last one only
            raise
        self._logged += len(line)

    def _put_late(self, step_id: StepId, result: bytes) -> None:
        """After the end there is no log: what comes late is rare, and costs a whole state."""
        results = self._results
        if results is None:
            results = {one: bytes(raw) for _, known in _read_files(self.path) for one, raw in known.items()}
        self._compact({**results, step_id: result})

    def _compact(self, results: Mapping[StepId, bytes]) -> None:
        _write_whole(self.path / STATE, msgspec.json.format(_json(results), indent=2))
        (self.path / LOG).unlink(missing_ok=True)
        self._results = None


# -- Results as JSON


class _Times(msgspec.Struct):
    first_updated_at: datetime | None = None


def _first_update(result: bytes | None) -> datetime | None:
    return None if result is None else msgspec.json.decode(result, type=_Times).first_updated_at


def _decoded(results: Mapping[StepId, bytes | msgspec.Raw]) -> dict[StepId, Result]:
    return {step_id: decode(bytes(result), dict[str, Any]) for step_id, result in results.items()}


def _json(results: Mapping[StepId, bytes]) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % (_text(step_id).encode(), result) for step_id, result in results.items())


def _raw(data: bytes) -> dict[StepId, msgspec.Raw]:
    by_text = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return {_step_id(text): result for text, result in by_text.items()}


def _text(step_id: StepId) -> str:
    return "-".join(map(str, step_id))


def _step_id(text: str) -> StepId:
    return tuple(map(int, text.split("-")))


def _check(step_id: StepId) -> None:
    """Refuses what would make a log unreadable."""
    if _step_id(_text(step_id)) != step_id:
        raise ValueError(f"{step_id!r} is not the id of a step")


# -- Files


def _read_results(path: Path) -> dict[StepId, Result]:
    results: dict[StepId, Result] = {}
    for file, raw in _read_files(path):
        with _damage_named(file):
            results |= _decoded(raw)
    return results


def _read_files(path: Path) -> list[tuple[Path, dict[StepId, msgspec.Raw]]]:
    """Gives what a build's files hold, the later over the earlier. Its process may be compacting it meanwhile."""
    state, log = path / STATE, path / LOG
    while True:
        before = _identity(state)
        files = [(state, _read_state(state)), (log, _read_log(log))]
        if _identity(state) == before:
            return files


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_state(path: Path) -> dict[StepId, msgspec.Raw]:
    data = _read(path)
    with _damage_named(path):
        return _raw(data) if data is not None else {}


def _read_log(path: Path) -> dict[StepId, msgspec.Raw]:
    latest: dict[StepId, msgspec.Raw] = {}
    *lines, _ = (_read(path) or b"").split(b"\n")  # the rest is empty, or a line that a crash has torn
    for number, line in enumerate(lines, 1):
        with _damage_named(path, f"line {number}: "):
            latest |= _raw(line)
    return latest


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedState(path, str(error)) from error


@contextmanager
def _damage_named(path: Path, where: str = "") -> Iterator[None]:
    """Says which file it is that does not hold what was written to it."""
    try:
        yield
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedState(path, f"{where}{error}") from error


def _write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that, whenever the process ends, the last whole version is there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(file.fileno())  # of a state: its log is deleted next
    os.replace(temporary, path)


# -- Locks on files: they end with the process, however it ends


def _locked(path: Path) -> int:
    """Opens a file and locks it; waits while another has it locked."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks is as a platform without them
                fcntl.flock(file, fcntl.LOCK_EX)
    except BaseException:
        os.close(file)
        raise
    return file


def _unlock(file: int) -> None:
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # a child that was just forked may share it
    os.close(file)


def _is_locked(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


# -- Small things


def _known(builds: Mapping[int, T], number: int) -> T:
    try:
        return builds[number]
    except (KeyError, TypeError):
        raise UnknownBuild(number) from None


def _inherit() -> None:
    for store in list(_stores):
        store.inherit()


_stores: WeakSet[DiskStore] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)
