"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO


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
    beside = path.with_name(f".{token_hex(8)}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a crash may leave the new name with nothing in it
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
