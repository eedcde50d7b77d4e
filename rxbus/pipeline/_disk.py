"""Builds on disk, under a home directory that several processes may share.

home/last-build-number              the highest number handed out; locked while a build is made or removed
home/build-7/build-metadata.json
home/build-7/pipeline-structure.json    written last: it makes the directory a build
home/build-7/build-log.jsonl        while the build runs: one line per update, {step id: result}
home/build-7/build.lock             while the build runs: locked by the process that runs it
home/build-7/build-state.json       afterwards: {step id: result} of every step
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from weakref import WeakSet

import msgspec

from rxbus.pipeline._files import (
    LOG,
    STATE,
    WORKSPACE_NAME,
    compact,
    damage_named,
    is_free,
    is_locked,
    json_of,
    locked,
    open_log,
    read,
    read_files,
    read_latest,
    remove_tree,
    unlock,
    write_whole,
)
from rxbus.pipeline._results import Result, StepId
from rxbus.pipeline._store import Metadata, Structure, check, decoded, first_update, known
from rxbus.pipeline.errors import DamagedState, PipelineClosed, UnknownBuild
from rxbus.pipeline.topics import decode

LAST_NUMBER = "last-build-number"
METADATA = "build-metadata.json"
STRUCTURE = "pipeline-structure.json"
LOCK = "build.lock"
REMOVED = ".rxbus-removed-"

SHORT = 1 << 20  # bytes of a log that are not worth compacting
GROWTH = 4  # how many times longer than the whole state a log may grow

WORKSPACE = re.compile(WORKSPACE_NAME.format("([1-9][0-9]*)", "[0-9-]+") + ".*")
DIRECTORY = re.compile("build-([1-9][0-9]*)")

logger = logging.getLogger("rxbus.pipeline")


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
        # Held while builds are made and removed, before the lock on the home's file. All locks of a pipeline are
        # RLocks, since a signal handler that shuts it down may strike its thread in the midst of any.
        self._making = threading.RLock()
        self._closed = False  # under _making
        self._own: dict[int, _Build] = {}  # what was made here; changed under _making, looked up without
        _stores.add(self)

    def create(self, structure: Structure, metadata: bytes) -> int:
        with self._alone() as counter:
            if self._closed:
                raise PipelineClosed
            number = self._new_directory(counter)
            path = self._directory(number)
            try:
                _note(counter, number)
                self._own[number] = _begun(path, structure, metadata)
            except BaseException:  # a full disk, or Ctrl-C: half a build is none
                shutil.rmtree(path, ignore_errors=True)
                raise
        return number

    def numbers(self) -> list[int]:
        return sorted(number for number in self._directories() if self._is_build(number))

    def structure(self, number: int) -> Structure:
        path = self.path(number) / STRUCTURE
        data = read(path)
        if data is None:
            raise UnknownBuild(number)
        with damage_named(path):
            return msgspec.json.decode(data, type=Structure)

    def metadata(self, number: int) -> Metadata:
        path = self.path(number) / METADATA
        with damage_named(path):
            return decode(read(path) or b"{}", Metadata)

    def path(self, number: int) -> Path:
        if not self._is_build(number):
            raise UnknownBuild(number)
        return self._directory(number)

    def read(self, number: int) -> tuple[dict[StepId, Result], bool]:
        build = self._own.get(number)
        held = build.held() if build is not None else None
        if held is not None:
            return decoded(held[0]), held[1]
        path = self.path(number)
        running = is_locked(path / LOCK)  # before: it may end, but what ended is complete
        results = _read_results(path)
        self.path(number)  # again: it may have been removed meanwhile
        return results, running

    def first_update(self, number: int, step_id: StepId) -> datetime | None:
        build = known(self._own, number)
        result = build.result(step_id)
        if result is not None or build.running:  # asked last: what was held until then is complete
            return first_update(result)
        return self.read(number)[0].get(step_id, {}).get("first_updated_at")

    def put(self, number: int, step_id: StepId, result: bytes) -> None:
        check(step_id)
        build = known(self._own, number)
        if not build.running:
            self.path(number)  # another process may have removed it
        build.put(step_id, result)

    def finish(self, number: int) -> None:
        build = self._own.get(number)
        if build is not None:
            build.finish()

    def truncate(self, keep: int) -> None:
        with self._alone():
            self._take_away_all(self.numbers()[:-keep])
            removed = list(self._home.glob(REMOVED + "*"))  # also what a crash has left
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)

    def tidy(self) -> None:
        """Does what processes have left undone that did not end well: builds they ran, or made by half, and workspaces.

        Only where it is certain that they have ended: without locks on files it is not.
        """
        if not self._directories():
            return
        with self._alone():
            self._tidy_builds()
            self._tidy_workspaces()

    def close(self) -> None:
        with self._making:
            self._closed = True
            builds = list(self._own.values())
        for build in builds:
            try:
                build.finish()
            except FileNotFoundError:  # another process has removed it, which it may since it has ended
                pass
            except OSError:
                logger.exception("the state of %s cannot be written as a whole; its log stays", build.path)

    def inherit(self) -> None:
        """In a forked child: the builds are the parent's, as are its locks."""
        for build in self._own.values():
            build.abandon()
        self._own = {}
        self._making = threading.RLock()

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """While it lasts, nobody else makes or removes builds; gives the open file of the last number.

        Loops stand in functions of their own: on Python 3.12 and 3.13 their jumps back, at which Ctrl-C strikes, would
        not count as in the block, and all would stay locked.
        """
        # `with`, although it is closed anyway: Ctrl-C may strike in the midst of unlocking it.
        with self._making, locked(self._home / LAST_NUMBER) as file:
            try:
                yield file.fileno()
            finally:
                unlock(file)

    def _new_directory(self, counter: int) -> int:
        noted = os.read(counter, 100).strip()
        number = max([int(noted) if noted.isdigit() else 0, *self.numbers()])
        while True:
            number += 1
            with suppress(FileExistsError):  # something foreign, or half a build, or a process that has no locks
                self._directory(number).mkdir()
                return number

    def _tidy_builds(self) -> None:
        for number in self._directories():
            path = self._directory(number)
            if not is_free(path / LOCK):
                continue
            if self._is_build(number):
                _finish_dead(path)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _tidy_workspaces(self) -> None:
        for workspace in self._home.glob("workspace-*"):
            match = WORKSPACE.fullmatch(workspace.name)
            if match and not (self._directory(int(match[1])) / LOCK).exists():
                remove_tree(workspace)

    def _take_away_all(self, numbers: list[int]) -> None:
        for number in numbers:
            if not self._is_running(number):
                self._take_away(number)

    def _take_away(self, number: int) -> None:
        """Makes a build vanish at once, so that nobody finds half of it, or writes to it."""
        self._own.pop(number, None)
        try:
            os.rename(self._directory(number), Path(tempfile.mkdtemp(prefix=REMOVED, dir=self._home)) / "build")
        except OSError:
            logger.exception("build %s cannot be removed", number)

    def _directories(self) -> list[int]:
        """The numbers of builds, and of what is called as they are."""
        with os.scandir(self._home) as entries:
            found = [(DIRECTORY.fullmatch(entry.name), entry) for entry in entries]
        return [int(match[1]) for match, entry in found if match and entry.is_dir(follow_symlinks=False)]

    def _directory(self, number: int) -> Path:
        return self._home / f"build-{number}"

    def _is_build(self, number: int) -> bool:
        try:
            return isinstance(number, int) and number > 0 and (self._directory(number) / STRUCTURE).exists()
        except PermissionError:  # reading it will tell
            return True

    def _is_running(self, number: int) -> bool:
        build = self._own.get(number)
        return (build is not None and build.running) or is_locked(self._directory(number) / LOCK)


class _Build:
    """A build on disk, for the process that makes it: locked and with an open log until it is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running = True
        self._unwritten = False  # it has ended, and its state could not be written as a whole
        self._changing = threading.RLock()  # held while results change, here and on disk; no other is taken under it
        self._results: dict[StepId, bytes] | None = {}  # None: on disk only
        self._alive = locked(path / LOCK)
        try:
            self._log = open_log(path / LOG)
        except BaseException:  # too many open files
            self._alive.close()
            raise
        self._unlogged: dict[StepId, bytes] = {}  # what has not been, as the disk was full
        self._logged = 0
        self._most = SHORT  # how long the log may grow until it is compacted

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
            self._results[step_id] = self._unlogged[step_id] = result
            self._append(json_of(self._unlogged) + b"\n")
            self._unlogged.clear()
            if self._logged > self._most:
                self._begin_log_anew(self._results)

    def finish(self) -> None:
        """Ends the build. Called again, it tries again to write the state, if that could not be done."""
        with self._changing:
            if not self.running:
                if self._unwritten:
                    self._write_whole()
                return
            self.running = False
            os.close(self._log)
            try:
                self._write_whole()
            finally:
                unlock(self._alive)
                with suppress(OSError):
                    (self.path / LOCK).unlink()

    def _write_whole(self) -> None:
        self._unwritten = False  # first: a shutdown in a signal handler is not to begin it anew
        try:
            self._compact(self._results or {})
        except OSError:
            self._unwritten = True
            raise

    def abandon(self) -> None:
        """Closes the files and writes nothing. A lock that another process shares stays."""
        if self.running:
            self.running = False
            os.close(self._log)
            self._alive.close()

    def _append(self, line: bytes) -> None:
        try:
            _write(self._log, line)
            self._logged += len(line)
        except BaseException:  # a full disk, or Ctrl-C
            with suppress(OSError):
                os.ftruncate(self._log, self._logged)  # half a line may be the last one only
            raise

    def _begin_log_anew(self, results: Mapping[StepId, bytes]) -> None:
        """Writes the whole, and goes on with an empty log: every update holds all of a step's result, so logs grow.

        As much is logged until the next time as takes many times longer to write than the whole, so the cost of an
        update does not depend on how many there have been. Readers that have the old log open see the same in it.
        """
        self._most = GROWTH * max(self._logged, SHORT)  # should it fail, it is tried again later
        new = self.path / (LOG + ".tmp")
        try:
            data = msgspec.json.format(json_of(results), indent=2)
            write_whole(self.path / STATE, data)
            log = open_log(new)
        except OSError:
            logger.exception("the log of %s cannot be compacted", self.path)
            return
        os.replace(new, self.path / LOG)
        os.close(self._log)
        self._log, self._logged, self._most = log, 0, max(GROWTH * len(data), SHORT)

    def _put_late(self, step_id: StepId, result: bytes) -> None:
        """After the end there is no log: what comes late is rare, and costs a whole state."""
        results = self._results
        if results is None:
            results = read_latest(self.path)
        self._compact({**results, step_id: result})

    def _compact(self, results: Mapping[StepId, bytes]) -> None:
        compact(self.path, results)
        self._results = None


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _note(counter: int, number: int) -> None:
    """Writes down the number that was handed out last."""
    os.lseek(counter, 0, os.SEEK_SET)
    os.ftruncate(counter, os.write(counter, b"%d\n" % number))


def _begun(path: Path, structure: Structure, metadata: bytes) -> _Build:
    build = _Build(path)
    try:
        write_whole(path / METADATA, msgspec.json.format(metadata, indent=2))
        write_whole(path / STRUCTURE, msgspec.json.format(msgspec.json.encode(structure), indent=2))
    except BaseException:  # a full disk, or Ctrl-C: its files are not to stay open, nor it locked
        build.abandon()
        raise
    return build


def _finish_dead(path: Path) -> None:
    """Compacts what a process has left of a build that it ran."""
    try:
        compact(path, read_latest(path))
        (path / LOCK).unlink()
    except (DamagedState, OSError):
        logger.exception("what is left of %s stays as it is", path)


def _read_results(path: Path) -> dict[StepId, Result]:
    results: dict[StepId, Result] = {}
    for file, raw in read_files(path):
        with damage_named(file):
            results |= decoded(raw)
    return results


def _inherit() -> None:
    for store in list(_stores):
        store.inherit()


_stores: WeakSet[DiskStore] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)
