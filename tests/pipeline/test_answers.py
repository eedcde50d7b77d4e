"""The socket in a home: who may use it, long paths, and what is left behind."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rxbus.pipeline import _answers
from rxbus.pipeline._answers import Listener, NoSocket, ask, is_own, sockets

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")

Listen = Callable[..., Listener]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Makes listeners that answer in capitals; closed after the test."""
    made: list[Listener] = []

    def make(home: Path, answer: Callable[[bytes], bytes] = bytes.upper) -> Listener:
        made.append(Listener(home, answer))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


@pytest.fixture
def long_home(tmp_path: Path) -> Path:
    home = tmp_path / ("h" * 120)
    home.mkdir()
    return home


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made; short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def stale(home: Path) -> Path:
    """What a crash leaves: a socket that nobody listens on."""
    path = home / "rxbus-00000000.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def is_refused(path: Path, request: bytes) -> bool:
    """Whether there is no answer: the other side hangs up, before all has been sent or afterwards."""
    try:
        return ask(path, request) is None
    except NoSocket as error:
        return "it gives no answer" in str(error)


class TestAsking:
    def test_a_request_is_answered(self, tmp_path: Path, listen: Listen) -> None:
        path = listen(tmp_path).path
        assert sockets(tmp_path) == [path]
        assert [ask(path, b"one"), ask(path, b"two" * 100_000)] == [b"ONE", b"TWO" * 100_000]

    def test_several_processes_share_a_home(self, tmp_path: Path, listen: Listen) -> None:
        listen(tmp_path), listen(tmp_path, bytes.lower)
        assert {ask(path, b"Any") for path in sockets(tmp_path)} == {b"ANY", b"any"}

    def test_it_is_gone_when_closed(self, tmp_path: Path) -> None:
        with closing(Listener(tmp_path, bytes.upper)) as listener:
            path = listener.path
        assert list(tmp_path.iterdir()) == []
        assert ask(path, b"any") is None

    def test_what_a_crash_has_left_is_passed_over_and_removed_by_the_next(self, tmp_path: Path, listen: Listen) -> None:
        left = stale(tmp_path)
        dangling = tmp_path / "rxbus-00000001.sock"
        dangling.symlink_to(tmp_path / "nothing")
        assert [ask(left, b"any"), ask(dangling, b"any")] == [None, None]
        live = listen(tmp_path).path
        other = listen(tmp_path).path
        assert set(tmp_path.iterdir()) == {live, other}

    def test_too_long_a_request_is_not_answered(
        self, tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_answers, "LIMIT", 10)
        path = listen(tmp_path).path
        assert is_refused(path, b"x" * 100)
        assert ask(path, b"short") == b"SHORT"

    def test_who_says_nothing_holds_nobody_up_for_long(
        self, tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = listen(tmp_path).path
        monkeypatch.setattr(_answers, "PATIENCE", 0.05)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            assert silent.recv(1) == b""
        monkeypatch.undo()
        assert ask(path, b"next") == b"NEXT"

    def test_a_listener_that_does_not_answer(
        self, tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go_on = threading.Event()

        def dawdle(request: bytes) -> bytes:
            go_on.wait()
            return request

        path = listen(tmp_path, dawdle).path
        monkeypatch.setattr(_answers, "PATIENCE", 0.05)
        try:
            with pytest.raises(NoSocket, match="timed out"):
                ask(path, b"any")
        finally:
            go_on.set()


class TestPrivacy:
    def test_nobody_else_may_connect(self, tmp_path: Path, listen: Listen) -> None:
        before = os.umask(0)
        try:
            path = listen(tmp_path).path
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the platform does not tell")
    def test_who_is_at_the_other_side(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert is_own(ours)
            uid = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
            assert not is_own(ours)
            monkeypatch.delattr(socket, "SO_PEERCRED")
            assert is_own(ours)  # the mode must do

    def test_another_user_gets_no_answer(self, tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
        main = threading.current_thread()
        path = listen(tmp_path).path
        monkeypatch.setattr(_answers, "is_own", lambda connection: threading.current_thread() is main)
        assert is_refused(path, b"any")

    def test_another_users_socket_is_not_asked(
        self, tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[bytes] = []
        path = listen(tmp_path, lambda request: (asked.append(request), request)[1]).path
        main = threading.current_thread()
        monkeypatch.setattr(_answers, "is_own", lambda connection: threading.current_thread() is not main)
        with pytest.raises(NoSocket, match="another user"):
            ask(path, b"secret")
        assert b"secret" not in asked


class TestLongPaths:
    def test_a_link_stands_for_it(self, long_home: Path, temporary: Path) -> None:
        with closing(Listener(long_home, bytes.upper)) as listener:
            assert listener.path.is_symlink()
            assert stat.S_IMODE(listener.path.parent.joinpath(os.readlink(listener.path)).stat().st_mode) == 0o600
            (private,) = temporary.iterdir()
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            assert ask(sockets(long_home)[0], b"any") == b"ANY"
        assert list(long_home.iterdir()) == list(temporary.iterdir()) == []

    def test_temporary_paths_are_long_too(self, long_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        temporary = long_home.parent / ("t" * 120)
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        with pytest.raises(NoSocket, match="too long") as raised:
            Listener(long_home, bytes.upper)
        assert (raised.value.home, str(long_home) in str(raised.value)) == (long_home, True)
        assert list(long_home.iterdir()) == list(temporary.iterdir()) == []

    def test_no_temporary_directory(self, long_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(long_home / "none"))
        with pytest.raises(NoSocket, match="No such file"):
            Listener(long_home, bytes.upper)

    def test_a_home_that_takes_no_link(self, long_home: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(link: Path, target: Path) -> None:
            raise PermissionError("no links here")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        with pytest.raises(NoSocket, match="no links here"):
            Listener(long_home, bytes.upper)
        assert list(temporary.iterdir()) == []


def test_a_platform_without_unix_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(NoSocket, match="no Unix sockets"):
        Listener(tmp_path, bytes.upper)
    with pytest.raises(NoSocket, match="no Unix sockets"):
        ask(tmp_path / "rxbus-1.sock", b"any")


def test_a_file_that_is_called_like_a_socket_stays(tmp_path: Path) -> None:
    notes = tmp_path / "rxbus-notes.sock"
    notes.write_text("precious")
    assert sockets(tmp_path) == []
    Listener(tmp_path, lambda request: request).close()
    assert notes.read_text() == "precious"
