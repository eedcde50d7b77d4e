"""A gate for tests in which the bus itself says that something has happened, by its log."""

from __future__ import annotations

import logging
import threading


class Opener(logging.Handler):
    """Opens a gate once something is told that begins like this."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning
        self._gate = threading.Event()
        logging.getLogger("rxbus").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._beginning):
            self._gate.set()

    def wait(self, event: object) -> None:
        """A handler that is slow until then."""
        assert self._gate.wait(10.0)

    def close(self) -> None:
        logging.getLogger("rxbus").removeHandler(self)
        super().close()
