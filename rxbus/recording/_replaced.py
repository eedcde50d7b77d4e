"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to be written: whoever reads it meanwhile, or is left with it by a failure, has the old one.

    What is written goes to a file beside it first.

    Raises:
        OSError: It cannot be written; the disk is full.
    """
    if path.exists() and not path.is_file():  # a device or a named pipe: there is nothing to be replaced
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()  # what a link points to is replaced, not the link
    beside, lock = _beside(path)
    try:
        with _opened(beside, path) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a crash may leave the new name with nothing in it
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except BaseException:  # Ctrl-C too leaves nothing behind
        beside.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _opened(beside: Path, path: Path) -> IO[bytes]:
    try:
        return beside.open("wb")
    except OSError as error:
        error.filename = str(path)  # which was asked for: nobody knows of the other one
        raise


def _beside(path: Path) -> tuple[Path, int | None]:
    """Gives a file to write to, and what keeps others from it until it is closed.

    It is always the same one, so that what a killed process leaves is used again; where another thread or process is at
    it, or there are no locks, it is one of its own. Nobody waits: a process that has been stopped may have the lock.
    """
    usual = path.with_name(f".{path.name}.rxbus.tmp")
    lock = _locked(usual)
    return (path.with_name(f".{token_hex(8)}.tmp"), None) if lock is None else (usual, lock)


def _locked(path: Path) -> int | None:
    """Makes a file, if need be, and locks it; None where that cannot be."""
    if fcntl is None:
        return None
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:  # its name is too long, say; whatever else it is, the next attempt to write tells
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):  # nobody has just put it in its place
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks: nobody would use it again
        path.unlink(missing_ok=True)
    os.close(file)
    return None
