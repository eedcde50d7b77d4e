"""The files of a build: its results as JSON, written so that a crash leaves what is whole, and locks."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import msgspec

from rxbus.pipeline._results import StepId, step_id_of, text_of
from rxbus.pipeline.errors import DamagedState

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOG = "build-log.jsonl"
STATE = "build-state.json"
WORKSPACE_NAME = "workspace-{}-{}-"  # of a build and a step

BINARY = getattr(os, "O_BINARY", 0)  # Windows would write other ends of lines

logger = logging.getLogger("rxbus.pipeline")


def json_of(results: Mapping[StepId, bytes]) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % (text_of(step_id).encode(), result) for step_id, result in results.items())


def _raw(data: bytes) -> dict[StepId, msgspec.Raw]:
    by_text = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return {step_id_of(text): result for text, result in by_text.items()}


def read_files(path: Path) -> list[tuple[Path, dict[StepId, msgspec.Raw]]]:
    """Gives what a build's files hold, the later over the earlier. Its process may be compacting it meanwhile."""
    state, log = path / STATE, path / LOG
    while True:
        before = _identity(state)
        files = [(state, _read_state(state)), (log, _read_log(log))]
        if _identity(state) == before:
            return files


def read_latest(path: Path) -> dict[StepId, bytes]:
    """Gives the latest results, as JSON."""
    return {step_id: bytes(raw) for _, known in read_files(path) for step_id, raw in known.items()}


def open_log(path: Path) -> int:
    """Opens a log that is appended to."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o666)


def compact(path: Path, results: Mapping[StepId, bytes]) -> None:
    """Writes all results as one file, instead of the log."""
    write_whole(path / STATE, msgspec.json.format(json_of(results), indent=2))
    (path / LOG).unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_state(path: Path) -> dict[StepId, msgspec.Raw]:
    data = read(path)
    with damage_named(path):
        return _raw(data) if data is not None else {}


def _read_log(path: Path) -> dict[StepId, msgspec.Raw]:
    latest: dict[StepId, msgspec.Raw] = {}
    *lines, _ = (read(path) or b"").split(b"\n")  # the rest is empty, or a line that a crash has torn
    for number, line in enumerate(lines, 1):
        with damage_named(path, f"line {number}: "):
            latest |= _raw(line)
    return latest


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedState(path, str(error)) from error


@contextmanager
def damage_named(path: Path, where: str = "") -> Iterator[None]:
    """Says which file it is that does not hold what was written to it."""
    try:
        yield
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedState(path, f"{where}{error}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that, whenever the process ends, the last whole version is there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(file.fileno())  # of a state: its log is deleted next
    os.replace(temporary, path)


def remove_tree(path: Path) -> None:
    """Removes a directory, what is write-protected in it too; gone already is no error, and what stays is logged."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    for directory, names, _ in os.walk(path):
        for name in names:  # before they are looked into
            inside = Path(directory, name)
            with suppress(OSError):
                if not inside.is_symlink():  # what it leads to is not ours
                    inside.chmod(stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("%s cannot be removed", path)


# -- Locks on files: they end with the process, however it ends


def locked(path: Path) -> FileIO:
    """Opens a file and locks it, until it is closed; waits while another has it locked."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks is as a platform without them
                fcntl.flock(file, fcntl.LOCK_EX)
    except BaseException:  # Ctrl-C, while another has it locked
        file.close()
        raise
    return file


def unlock(file: FileIO) -> None:
    """Closes a file that has been locked; so that it is unlocked, though a child that was just forked may share it."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def is_free(path: Path) -> bool:
    """Whether it is certain that no process has it locked: False where it is not there, or locks do not work."""
    return _refused(path, shared=False) == ""


def is_locked(path: Path) -> bool:
    """Whether it is certain that a process has it locked; see `is_free`."""
    return _refused(path, shared=True) == "locked"


def _refused(path: Path, shared: bool) -> str:
    """Tries to lock a file; says why it could not, if it could not."""
    if fcntl is None:
        return "no locks"
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return "no file"
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return "locked"
    except OSError:
        return "no locks"
    finally:
        os.close(file)
    return ""
