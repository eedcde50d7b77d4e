"""What tests of processes share."""

from __future__ import annotations

import subprocess
import threading
from typing import IO

PATIENCE = 10.0


def rest_of(process: subprocess.Popen[str], timeout: float = PATIENCE) -> tuple[str, str]:
    """Waits for the end of a process, and gives what it has written and nobody has read.

    `communicate` would lose what a pipe's text layer holds where lines have been read before: it reads past that.
    """
    texts = ["", ""]

    def read(number: int, pipe: IO[str]) -> None:
        with pipe:
            texts[number] = pipe.read()

    pipes = [
        (number, pipe)
        for number, pipe in enumerate((process.stdout, process.stderr))
        if pipe is not None and not pipe.closed
    ]
    readers = [threading.Thread(target=read, args=each, daemon=True) for each in pipes]
    if process.stdin is not None:
        process.stdin.close()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout)
        assert not reader.is_alive(), "the process does not end"
    process.wait(timeout)
    return texts[0], texts[1]
