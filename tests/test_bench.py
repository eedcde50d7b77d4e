"""`rxbus bench`: what it measures, counts, shows and draws, and that every peer's adapter does what it says."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from rxbus import cli
from rxbus._bench import command, rounds
from rxbus._bench.peers import ALL, INLINE, Abxbus, Blinker, Loop, Peer, Psygnal, Rx, Rxbus, Tally
from rxbus._bench.plot import LOOKS, draw
from rxbus._bench.rounds import Contender, Figures, Load, Miscounted, PeerFailed, Scenario, measure
from tests.processes import rest_of
from tests.test_cli import PATIENCE, python, running, stream

pytestmark = pytest.mark.timeout(60, method="signal")

FOUR = ("--observers", "1,2,3,4", "--topics", "1")
QUICK = ("--observers", "2", "--topics", "1", "--peers", "rxbus,loop", "--seconds", "0.2")


@pytest.fixture(params=ALL, ids=lambda kind: kind.name)
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    peer = request.param()
    yield peer
    peer.close()


def figures(peer: type[Peer] = Rxbus, **changes: Any) -> Figures:
    made = Figures(1, 1, peer.name, rounds=3, publishes=30, per_second=1e6, p50_us=1.0, p99_us=2.0, max_us=30.0)
    return msgspec.structs.replace(made, **changes)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Runs the command in this process; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["rxbus", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


class TestPeers:
    def test_publish_returns_when_all_handlers_have(self, peer: Peer) -> None:
        tally = Tally()
        tally.attach(peer, "a.b", 3)
        tally.attach(peer, "a.c", 1)
        peer.publish("a.b", 1)
        assert tally.total == 3
        peer.publisher("a.c")(1)
        assert tally.total == 4

    def test_a_handler_gets_the_payload_until_it_is_detached(self, peer: Peer) -> None:
        seen: list[object] = []
        detach = peer.attach("a.b", lambda message: seen.append(peer.payload(message)))
        peer.publish("a.b", 7)
        detach()
        peer.publish("a.b", 8)
        assert seen == [7]

    def test_from_a_coroutine(self, peer: Peer) -> None:
        seen: list[object] = []

        async def handle(message: object) -> None:
            seen.append(peer.payload(message))

        async def publish() -> None:
            await peer.prepare()
            peer.attach("a.b", handle if isinstance(peer, Rxbus | Blinker | Abxbus) else seen.append)
            await peer.publish_async("a.b", 7)

        peer.run(publish())
        assert seen == [7]

    def test_what_a_handler_publishes(self, peer: Peer) -> None:
        tally = Tally()
        tally.attach(peer, "inner", 1)
        peer.attach("outer", lambda _: peer.publish("inner", 1))
        peer.publish("outer", 1)
        if isinstance(peer, Abxbus):  # a plain handler cannot wait for it
            peer.run(peer.bus.wait_until_idle())
        assert tally.total == 1

    def test_who_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert all(kind.version() for kind in ALL)
        monkeypatch.setitem(sys.modules, "psygnal", None)
        assert Psygnal.version() is None
        assert tuple(kind for kind in ALL if kind is not Abxbus) == INLINE


class TestRounds:
    @pytest.mark.parametrize("scenario", [Scenario(0, 1), Scenario(1, 1), Scenario(3, 5)], ids=str)
    def test_figures_of_all_peers(self, scenario: Scenario) -> None:
        told: list[int] = []
        found = measure(scenario, ALL, 0.2, told=told.append)
        assert [row.peer for row in found] == [kind.name for kind in ALL]
        for row in found:
            assert (row.observers, row.topics, row.rounds) == (scenario.observers, scenario.topics, len(told))
            assert row.publishes >= 2 * row.rounds
            assert row.per_second > 0
            assert 0 < row.p50_us <= row.p99_us <= row.max_us
        assert told == [*range(1, len(told) + 1)]

    def test_what_is_published_goes_to_one_topic_after_the_other(self) -> None:
        topics: list[str] = []

        class Noting(Loop):
            def publisher(self, topic: str) -> Callable[[Any], object]:
                return lambda payload: topics.append(topic)

        measure(Scenario(0, 3), [Noting], 1, stopped=lambda: len(topics) >= 7)
        assert topics[:7] == [f"bench.t{number}" for number in (0, 1, 2, 0, 1, 2, 0)]

    def test_deliveries_that_are_not_made_are_an_error(self) -> None:
        class Forgetful(Loop):
            name = "forgetful"

            def attach(self, topic: str, handler: Any) -> Callable[[], object]:
                return lambda: None

        with pytest.raises(Miscounted, match="forgetful has made 0 deliveries instead of 2"):
            measure(Scenario(2, 1), [Rxbus, Forgetful], 1)

    def test_a_peer_that_fails_is_named(self) -> None:
        class Failing(Loop):
            name = "failing"

            def publisher(self, topic: str) -> Callable[[Any], object]:
                return {}.__getitem__

        with pytest.raises(PeerFailed, match=re.escape("failing has failed: KeyError(1)")):
            measure(Scenario(2, 1), [Failing], 1)

    def test_the_time_per_publish_is_that_of_the_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([10.0, 12.0])
        monkeypatch.setattr(rounds, "perf_counter", lambda: next(clock))
        assert Load("one", lambda: None, 4, 0, Tally()).seconds() == 0.5

    def test_figures_are_of_all_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        contender = Contender(peer := Loop(), Scenario(1, 1))
        assert contender.figures() is None
        assert len([*contender.set_up()]) == 2
        seconds, times = iter([1.0, 9.0, 4.0, 9.0, 2.0, 9.0]), iter([0, 5000, 0, 1000, 0, 3000])
        monkeypatch.setattr(Load, "seconds", lambda load: (load.run(), next(seconds))[1])
        monkeypatch.setattr(rounds, "perf_counter_ns", lambda: next(times))
        contender.take_turn()
        assert contender.figures() == Figures(1, 1, "plain loop", 1, 2, 1.0, 5.0, 5.0, 5.0)
        contender.take_turn()
        contender.take_turn()
        peer.close()
        assert contender.figures() == Figures(1, 1, "plain loop", 3, 6, 0.5, 3.0, 4.96, 5.0)

    def test_one_slow_publish_does_not_make_all_turns_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        contender = Contender(peer := Loop(), Scenario(0, 1))
        assert len([*contender.set_up()]) == 1
        seconds = iter([1.0, 0.001, 0.002, 0.001, 0.001, 0.001])
        monkeypatch.setattr(Load, "seconds", lambda load: next(seconds))
        contender.warm_up(0.01)  # three of one publish, three of four
        monkeypatch.undo()
        contender.take_turn()
        peer.close()
        assert contender.figures().publishes == 3 * 1 + 3 * 4 + 2 * 10  # type: ignore[union-attr]

    def test_without_time_each_peer_has_a_turn(self) -> None:
        assert [row.rounds for row in measure(Scenario(5, 5), [Rxbus, Loop], 0.0)] == [1, 1]

    def test_what_takes_too_long_to_set_up_is_not_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rounds, "SET_UP", 0.0)
        assert measure(Scenario(5, 5), [Rxbus], 0.0) == []

    def test_it_is_stopped_between_turns(self) -> None:
        looks = iter([False] * 10 + [True] * 10)
        found = measure(Scenario(1, 1), [Loop, Blinker], 1, stopped=lambda: next(looks))
        assert {row.peer for row in found} <= {"plain loop", "blinker"}
        assert found
        assert measure(Scenario(1, 1), [Loop], 60, stopped=lambda: True) == []

    def test_nothing_is_left_behind(self) -> None:
        before = threading.enumerate()
        measure(Scenario(1, 1), ALL, 0.05)
        assert threading.enumerate() == before

    def test_a_scenario_in_words(self) -> None:
        assert str(Scenario(1, 1)) == "1 observer, 1 topic"
        assert str(Scenario(10, 1000)) == "10 observers on each of 1,000 topics"


class TestLines:
    def test_the_setting_and_a_line_for_each_figure(self) -> None:
        done = python("-m", "rxbus", "bench", "--observers", "1,0,1", "--topics", "1,2", "--seconds", "1.5")
        assert (done.returncode, done.stderr) == (0, "")
        setting, *rows = map(json.loads, done.stdout.splitlines())
        assert set(setting) == {"python", "cores", "seconds", "versions", "not_installed"}
        assert list(setting["versions"]) == [kind.name for kind in ALL]
        assert (setting["seconds"], setting["not_installed"]) == (1.5, [])
        scenarios = [(topics, observers) for topics in (1, 2) for observers in (1, 0)]
        assert [(row["topics"], row["observers"], row["peer"]) for row in rows] == [
            (*scenario, kind.name) for scenario in scenarios for kind in ALL
        ]
        assert set(rows[0]) == set(Figures.__struct_fields__)

    def test_who_is_not_installed_is_named(self) -> None:
        code = "import sys; sys.modules['blinker'] = None; from rxbus.cli import main; main()"
        done = python("-c", code, "bench", "--seconds", "0.3", "--observers", "1", "--topics", "1")
        assert (done.returncode, done.stderr) == (0, "")
        setting, *rows = map(json.loads, done.stdout.splitlines())
        assert setting["not_installed"] == ["blinker"]
        assert [row["peer"] for row in rows] == [kind.name for kind in ALL if kind is not Blinker]
        done = python("-c", code, "bench", "--peers", "blinker")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "rxbus: not installed: blinker\n")

    def test_for_what_there_was_no_time_is_told(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(rounds, "SET_UP", 0.1)
        arguments = ("--observers", "1", "--topics", "1000000,1", "--peers", "loop", "--seconds", "0.1")
        assert run(monkeypatch, *arguments) == 0
        out, errors = capsys.readouterr()
        assert [json.loads(line)["topics"] for line in out.splitlines()[1:]] == [1]
        assert errors == "rxbus: there was no time for: 1 observer on each of 1,000,000 topics\n"

    def test_deliveries_that_are_not_made_end_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(Tally, "total", 0)
        assert run(monkeypatch, *QUICK) == 2
        assert capsys.readouterr().err == "rxbus: plain loop has made 0 deliveries instead of 2\n"

    def test_ctrl_c_ends_it_with_what_there_is(self) -> None:
        with running("bench", *FOUR, "--seconds", "8", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
            lines = stream(bench.stdout)
            json.loads(lines.readline())
            assert json.loads(lines.readline())["observers"] == 1
            bench.send_signal(signal.SIGINT)
            output, errors = rest_of(bench)
        assert (bench.returncode, errors) == (130, "")
        assert all(set(json.loads(line)) == set(Figures.__struct_fields__) for line in output.splitlines())

    def test_ctrl_c_leaves_the_plot_of_what_there_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def measured(scenario: Scenario, *arguments: Any) -> list[Figures]:
            signal.raise_signal(signal.SIGINT)
            return [figures(observers=scenario.observers)]

        monkeypatch.setattr(command, "measure", measured)
        assert run(monkeypatch, "--plot", str(tmp_path / "plot.svg")) == 130
        assert "rxbus" in (tmp_path / "plot.svg").read_text("utf-8")

    def test_a_reader_that_leaves_ends_it_quietly(self) -> None:
        with running("bench", *FOUR, "--seconds", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
            with stream(bench.stdout) as lines:
                json.loads(lines.readline())
            errors = stream(bench.stderr).read()
            assert (bench.wait(PATIENCE), errors) == (1, "")


class TestScreen:
    def test_tables_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(command, "is_screen", lambda as_json: not as_json)
        assert run(monkeypatch, *QUICK, "--observers", "2,1") == 0
        shown = capsys.readouterr().out
        assert shown.index("2 observers, 1 topic") < shown.index("1 observer, 1 topic")
        assert {"plain loop", "rxbus"} <= {line.split("  ")[0].strip() for line in shown.splitlines()}

    def test_the_fastest_comes_first_and_all_fits_into_80_columns(self) -> None:
        rows = [
            figures(Rx, p50_us=0.5, per_second=12_345_678.9),
            figures(Abxbus, p50_us=1234.5, p99_us=23456.7, max_us=1234567.8, per_second=0.5),
            figures(Rxbus, p50_us=1.0),
        ]
        drawn = io.StringIO()
        Console(file=drawn, width=80).print(command.table(Scenario(1, 1), rows))
        title, headings, _, *lines = drawn.getvalue().splitlines()
        assert title.strip() == "1 observer, 1 topic"
        assert headings.rstrip().endswith(" p50 / rxbus")
        assert [line.split() for line in lines] == [
            ["RxPY", "Subject", "12,345,679", "0.500", "2.00", "30.0", "0.50"],
            ["rxbus", "1,000,000", "1.00", "2.00", "30.0", "1.00"],
            ["abxbus", "0", "1,234", "23,457", "1,234,568", "1234.50"],
        ]

    def test_without_rxbus_there_is_nothing_to_compare_with(self) -> None:
        drawn = io.StringIO()
        Console(file=drawn, width=80).print(command.table(Scenario(1, 1), [figures(Loop)]))
        assert drawn.getvalue().splitlines()[-1].split() == ["plain", "loop", "1,000,000", "1.00", "2.00", "30.0"]

    def test_the_setting_in_words(self) -> None:
        setting = command.Setting("3.11.7", 2, 20.0, {"plain loop": "3.11.7", "rxbus": "0.1.0"}, ["pyee", "psygnal"])
        assert str(setting) == "Python 3.11.7, 2 cores; rxbus 0.1.0; not installed: pyee, psygnal"

    @pytest.mark.parametrize(("number", "written"), [(0.0, "0"), (0.14, "0.140"), (9.99, "9.99"), (1234.4, "1,234")])
    def test_three_figures(self, number: float, written: str) -> None:
        assert command.significant(number) == written


class TestArguments:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--observers", "-1"),
            ("--observers", "many"),
            ("--observers", ""),
            ("--topics", "0"),
            ("--topics", "1.5"),
            ("--peers", "[red]nobody"),
            ("--peers", ""),
            ("--seconds", "0"),
            ("--seconds", "nan"),
        ],
    )
    def test_what_cannot_be_meant(
        self, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, option, value) == 2
        assert option in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "told"),
        [("plot", "does not say as which"), ("plot.bmp2", "does not say as which"), ("no/plot.svg", "no directory")],
    )
    def test_a_plot_that_cannot_be_is_told_before_anything_is_measured(
        self,
        name: str,
        told: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run(monkeypatch, "--plot", str(tmp_path / name)) == 2
        out, errors = capsys.readouterr()
        assert (out, errors.count("\n")) == ("", 1)
        assert re.match(f"rxbus: .*{told}", errors)

    def test_without_matplotlib_there_is_no_plot(self) -> None:
        code = "import sys; sys.modules['matplotlib'] = None; from rxbus.cli import main; main()"
        done = python("-c", code, "bench", "--plot", "plot.svg")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("rxbus: a plot needs the extra 'bench': ")


VERSIONS = {kind.name: "1.2.3" for kind in ALL}


class TestPlot:
    ROWS = tuple(
        figures(kind, topics=topics, observers=observers)
        for kind in ALL
        for topics in (1, 100)
        for observers in (1, 10, 100)
    )

    def test_an_svg_says_it_all(self) -> None:
        drawn = draw(self.ROWS, "svg", VERSIONS)
        texts = {element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
        assert {"1 topic", "100 topics", "publishes per second", "observers of each topic"} <= texts
        assert {f"{kind.name} 1.2.3" for kind in ALL} <= texts
        assert draw(self.ROWS, "svg", VERSIONS) == drawn

    def test_a_png_is_written_over_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "plot.PNG"
        file.write_text("old")
        assert run(monkeypatch, *QUICK, "--plot", str(file)) == 0
        assert file.read_bytes().startswith(b"\x89PNG")
        assert os.listdir(tmp_path) == ["plot.PNG"]

    def test_a_peer_that_was_measured_in_part_only(self) -> None:
        rows = [*self.ROWS[:3], figures(Abxbus, observers=10)]
        assert draw(rows, "svg", {}).startswith(b"<?xml")

    def test_each_peer_has_a_look_of_its_own(self) -> None:
        assert list(LOOKS) == [kind.name for kind in ALL]
        assert len(set(LOOKS.values())) == len({colour for colour, _ in LOOKS.values()}) == len(ALL)


@pytest.mark.parametrize("base", [Peer, command.Display])
def test_what_says_only_what_is_wanted_is_not_to_be_made(base: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        base()
