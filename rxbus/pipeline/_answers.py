"""A socket in a pipeline's home, by which other terminals of the same user reach the process that runs builds there.

    home/rxbus-1a2b3c4d.sock    the socket of one process, or a link to it

It is a link where the path would be too long for a Unix socket, or where the file system holds none: then the socket is
in a private temporary directory. Each connection carries one request, up to its end, and one reply.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

from rxbus.errors import RxBusError

PATTERN = "rxbus-*.sock"
LIMIT = 1 << 20  # bytes of a request, and of a reply
PATIENCE = 10.0  # seconds that one side waits for the other
BACKLOG = 16
PAUSE = 0.1  # seconds until another try where no connection can be taken


class NoSocket(RxBusError):
    """A home has no socket, or it cannot be used.

    Attributes:
        home: The home, or the socket in it.
        reason: What is in the way.
    """

    def __init__(self, home: Path, reason: str) -> None:
        super().__init__(home, reason)
        self.home = home
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.home} cannot be used to reach a running pipeline: {self.reason}"


class Listener:
    """Listens in a home, and answers on a thread of its own, one request after another.

    Args:
        home: The home; it exists.
        answer: Makes a reply of a request; it does not raise.

    Raises:
        NoSocket: The platform has no Unix sockets, or none can be made.
    """

    def __init__(self, home: Path, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self.path, self._server, self._directory = _listening(home)
        self._stop, self._stopped = socket.socketpair()
        self._thread = Thread(target=self._serve, name="rxbus-pipeline-socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers nothing more, and removes the socket; a request that is being answered comes first."""
        self._stop.close()
        self._thread.join()
        _remove(self.path)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _serve(self) -> None:
        with self._server, self._stopped, selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while self._stopped not in [key.fileobj for key, _ in selector.select()]:
                self._serve_one()

    def _serve_one(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # it has gone already, or there are too many open files
            time.sleep(PAUSE)
            return
        with connection, suppress(OSError):  # its own affair
            if is_own(connection):
                _send(connection, self._answer(_receive(connection)))


def sockets(home: Path) -> list[Path]:
    """Gives the sockets in a home; some may be what a crash has left."""
    return sorted(path for path in home.glob(PATTERN) if path.is_socket() or path.is_symlink())


def ask(path: Path, request: bytes, patience: float | None = None) -> bytes | None:
    """Sends a request to one of a home's sockets, and gives the reply; None where nobody listens any more.

    Raises:
        NoSocket: It is somebody else's, or it does not answer.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise NoSocket(path, "this platform has no Unix sockets")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE if patience is None else patience)
        try:
            connection.connect(_address(path))
            if not is_own(connection):
                raise NoSocket(path, "another user listens there")
            _send(connection, request)
            return _receive(connection, patience) or _refused(path)
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError as error:
            raise NoSocket(path, str(error)) from error


def _refused(path: Path) -> bytes:
    raise NoSocket(path, "it gives no answer")


def is_own(connection: socket.socket) -> bool:
    """Whether the other side is a process of the same user; where the platform cannot tell, the file's mode must do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = struct.Struct("iII")  # pid, uid, gid
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(told)[1]) == os.geteuid()


def _listening(home: Path) -> tuple[Path, socket.socket, Path | None]:
    """Gives the path in the home, the socket, and the temporary directory that it is in, if any."""
    if not hasattr(socket, "AF_UNIX"):
        raise NoSocket(home, "this platform has no Unix sockets")
    _remove_stale(home)
    path = home / f"rxbus-{secrets.token_hex(4)}.sock"
    new = path.with_suffix(".new")
    try:
        return path, _bound(new, lambda: new.rename(path)), None  # renamed last: whoever finds it can connect
    except OSError:
        _remove(new)
    try:
        directory = Path(tempfile.mkdtemp(prefix="rxbus-"))
    except OSError as error:
        raise NoSocket(home, str(error)) from error
    short = directory / "socket"
    try:
        return path, _bound(short, lambda: path.symlink_to(short)), directory
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise NoSocket(home, str(error)) from error


def _bound(path: Path, show: Callable[[], object]) -> socket.socket:
    """Gives a socket that listens, once it has been shown to others."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(str(path))
        path.chmod(0o600)  # in time: nobody can connect before it listens
        server.listen(BACKLOG)
        server.setblocking(False)  # one that has gone before it was accepted holds nobody up
        show()
    except BaseException:  # whatever it is, the socket must not stay
        server.close()
        raise
    return server


def _remove_stale(home: Path) -> None:
    """Removes what processes have left that ended without closing."""
    for path in sockets(home):
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            try:
                connection.connect(_address(path))
            except (FileNotFoundError, ConnectionRefusedError):
                _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _address(path: Path) -> str:
    return os.readlink(path) if path.is_symlink() else str(path)


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket, patience: float | None = None) -> bytes:
    """Receives up to the end of what the other side sends."""
    received, end = bytearray(), time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        connection.settimeout(max(0.001, end - time.monotonic()))
        chunk = connection.recv(LIMIT)
        received += chunk
        if not chunk:
            return bytes(received)
        if len(received) > LIMIT or time.monotonic() > end:
            raise OSError("it is too long, or takes too long")
