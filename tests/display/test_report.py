"""The page of a recording: what it says, that it asks for nothing, and that nothing in it comes to life."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rxbus import Event, EventBus, PublishError
from rxbus._short import short
from rxbus.display import _report
from rxbus.display._analysis import BINS, Latency, analyse, latency_of
from rxbus.display._report import Scale, report, shown, when
from tests.recordings import HOSTILE, HOSTILE_TOPIC, delivery, event, made

VOID = {"meta", "link", "img", "path", "circle"}


class Page(HTMLParser):
    """A page that has been read: its elements, well nested, and its text by element."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.deepest = 0
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)
            self.deepest = max(self.deepest, len(self._open))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))
        if {"td", "th"} & {*self._open}:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(text.split()) for tag, text in self.texts if tag != "style")

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def row(self, first: str) -> list[str]:
        (found,) = (row for row in self.rows if row[0] == first)
        return found


class TestPage:
    def test_it_asks_for_nothing_and_runs_nothing(self, tmp_path: Path) -> None:
        lines = [
            event(1, HOSTILE_TOPIC, payload=HOSTILE),
            event(2, HOSTILE_TOPIC, payload=HOSTILE, cause=1),
            delivery(1, HOSTILE, error=HOSTILE),
        ]
        page = Page(report(made(tmp_path, lines)))
        (policy,) = (
            attributes["content"] or ""
            for tag, attributes in page.elements
            if attributes.get("http-equiv") == "Content-Security-Policy"
        )
        (style,) = page.of("style")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert policy.split("; ") == [
            "default-src 'none'",
            "img-src data:",
            f"style-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
        assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
            for name in ("src", "href"):
                assert (attributes.get(name) or "data:").startswith("data:"), tag
        assert "url(" not in style
        assert "@import" not in style

    def test_names_and_payloads_show_as_they_are_without_what_steers(self, tmp_path: Path) -> None:
        lines = [
            event(1, HOSTILE_TOPIC, payload=HOSTILE),
            event(2, "b", payload=HOSTILE, cause=1),
            delivery(1, "observer " + HOSTILE, error="error " + HOSTILE),
        ]
        text = report(made(tmp_path, lines))
        page = Page(text)
        assert page.row(shown(HOSTILE_TOPIC))[1] == "1"
        assert page.row(shown("observer " + HOSTILE))[1] == "1"
        assert page.row(shown("error " + HOSTILE))[1] == shown("observer " + HOSTILE)
        assert short(HOSTILE, _report.LONGEST) in page.text
        assert all(one.isprintable() or one == "\n" for one in text)
        text.encode()

    def test_payloads_that_no_file_could_hold_show_as_they_were(self, tmp_path: Path) -> None:
        lines = [{**event(1), "repr": "<socket 3>"}, {**event(2, cause=1), "repr": "<socket 4>"}]
        page = Page(report(made(tmp_path, [*lines, delivery(1, error="it is closed")])))
        assert "#1 <socket 3>" in page.text
        assert "<socket 4>" in page.text
        assert "Unencodable" not in page.text

    def test_it_is_whole(self, tmp_path: Path) -> None:
        page = Page(report(made(tmp_path, [event(1)], pattern="a.*")))
        assert page.of("title") == ["Recording of a.*"]
        assert page.of("h2") == ["Marbles", "Topics", "Slowest observers", "What led to what"]
        assert any(tag == "img" and attributes["alt"] for tag, attributes in page.elements)
        assert {tag for tag, _ in page.elements} >= {"html", "head", "body", "main"}

    def test_nothing_recorded(self, tmp_path: Path) -> None:
        page = Page(report(made(tmp_path, [], ended=0.0)))
        assert "Nothing was published." in page.text
        assert "Nobody observed." in page.text
        assert "No event led to another." in page.text

    def test_of_a_bus_that_goes_on(self, bus: EventBus) -> None:
        with bus.record() as recording:
            bus.subscribe("a", name="shouts").subscribe(lambda event: bus.publish("b", 1 / event.payload))
            bus.publish("a", 1)
            with pytest.raises(PublishError):
                bus.publish("a", 0)
            page = Page(report(recording))
        assert "going on" in page.text
        assert page.row("a")[1] == "2"
        assert page.row("shouts")[-1] == "1"
        assert page.row("ZeroDivisionError('division by zero')")[1:] == ["shouts", "a", "1", "#3 0"]
        assert "going on" not in Page(report(recording)).text

    def test_the_longest_that_there_can_be(self, tmp_path: Path) -> None:
        first, last = -62e9, 253e9  # the years 5 and 9987
        lines = [
            event(1, "a", time=last),
            event(2, "a", time=first, cause=1),
            delivery(1, start=last, end=first),
            delivery(2, start=first, end=last),
            delivery(2, start=first, end=last),
        ]
        page = Page(report(made(tmp_path, lines, began=first, ended=last)))
        assert page.row("a")[1] == "2"

    def test_deliveries_of_events_that_are_missing(self, tmp_path: Path) -> None:
        page = Page(report(made(tmp_path, [event(1), delivery(1), delivery(7, error="lost")])))
        assert page.row("o")[1] == "2"
        assert page.row("a")[-1] == "0"

    def test_what_the_ring_has_let_go_of_is_told(self, tmp_path: Path) -> None:
        page = Page(report(made(tmp_path, [event(9, time=6.0)], dropped=8)))
        assert "4 s; 8 earlier events let go of" in page.text


class TestBounds:
    def test_of_very_many_the_first_are_shown(self, tmp_path: Path) -> None:
        lines = []
        for number in range(1000):
            lines.append(event(2 * number, f"t.x{number}", payload="x" * 100_000 if number < 10 else 1))
            lines.append(event(2 * number + 1, f"u.x{number}", cause=2 * number))
            lines.append(delivery(2 * number, f"o{number}", error=f"e{number}"))
        text = report(made(tmp_path, lines))
        page = Page(text)
        assert "… and 1,800 more topics" in page.text
        assert "… and 900 more observers" in page.text
        assert "… and 900 more kinds of failures" in page.text
        assert "… and 980 events on 980 more topics" in page.text
        assert "Trees of events, the largest 10 of 1,000" in page.text
        assert len(text) < 1_000_000

    def test_a_hundred_thousand_events_are_a_page_of_some_kilobytes(self, tmp_path: Path) -> None:
        lines = [event(id, f"t.x{id % 7}", time=id / 10_000, cause=id - 1 if id % 3 else None) for id in range(100_000)]
        text = report(made(tmp_path, lines))
        assert Page(text).row("t.x0")[1] == "14,286"
        assert len(text) < 2_000_000

    def test_a_long_chain_is_not_nested_without_end(self, tmp_path: Path) -> None:
        lines = [event(id, f"t.x{id}", cause=id - 1 if id else None) for id in range(1000)]
        page = Page(report(made(tmp_path, lines)))
        assert page.deepest < 60
        assert f"… and {1000 - _report.DEPTH} events further down" in page.text
        assert f"… and {1000 - _report.TREE_LINES} more" in page.text
        assert "(99 deep) t.x99" in page.text


class TestCauses:
    def test_topics_that_led_to_topics(self, tmp_path: Path) -> None:
        lines = [
            event(1, "order", time=1.0),
            event(2, "paid", time=1.5, cause=1),
            event(3, "order", time=2.0),
            event(4, "paid", time=2.1, cause=3),
            event(5, "sent", time=2.2, cause=4, payload={"by": "mail"}),
            event(6, "sent", time=3.0, cause=0),
        ]
        text = report(made(tmp_path, lines))
        page = Page(text)
        tree = page.text.partition("Which topics led to which")[2].partition("Trees of events")[0]
        assert re.sub(r"\s+", " ", tree.partition("cause.")[2]).split() == [
            *("order", "2"),
            *("paid", "2", "+300", "ms"),
            *("sent", "1", "+100", "ms"),
            *("sent", "1"),
        ]
        _, largest, _, third = re.findall(r"<pre class=\"wide\">(.*?)</pre>", text, re.DOTALL)  # the first: marbles
        assert [unescape(re.sub(r"<.*?>", "", line)) for line in largest.split("\n")] == [
            "order None #3",
            "  paid +100 ms None #4",
            "    sent +100 ms {'by': 'mail'} #5",
        ]
        assert "paid</b> +500 ms None" in third
        assert "an event that is not recorded" in page.text
        assert "#0 not recorded" in page.text

    def test_without_effects_there_are_no_trees(self, tmp_path: Path) -> None:
        page = Page(report(made(tmp_path, [event(1), event(2)])))
        assert "No event led to another." in page.text
        assert "Trees" not in page.text


class TestAnalysis:
    def test_topics_observers_and_failures(self, tmp_path: Path) -> None:
        lines = [
            event(1, "a", time=0.0),
            event(2, "a", time=5.0),
            event(3, "b", time=9.99),
            event(4, "c", time=10.0),
            delivery(1, "slow", start=0.1, end=2.0),
            delivery(1, "quick", start=0.1, end=0.2, error="bad"),
            delivery(2, "slow", start=5.0, end=6.0),
            delivery(3, "quick", start=9.99, end=10.0, error="bad"),
            delivery(3, "quick", start=9.99, end=10.0, error="bad"),
        ]
        found = analyse(made(tmp_path, lines))
        assert (found.events, found.deliveries, found.failed, found.seconds, found.per_second) == (4, 5, 3, 10.0, 0.4)
        assert [(one.topic, one.events, one.deliveries, one.observers, one.failures) for one in found.topics] == [
            ("a", 2, 3, 2, 1),
            ("b", 1, 2, 1, 2),
            ("c", 1, 0, 0, 0),
        ]
        first, _, last = found.topics
        assert (first.latency, first.per_second) == (Latency(1.0, 2.0, 2.0), 0.2)
        assert last.latency is None
        assert (first.bins[0], first.bins[30], sum(first.bins), last.bins[-1], len(last.bins)) == (1, 1, 2, 1, BINS)
        slow, quick = found.observers
        assert (slow.observer, slow.topics, slow.deliveries, slow.total) == ("slow", 1, 2, pytest.approx(2.9))
        assert (quick.observer, quick.topics, quick.failures) == ("quick", 2, 3)
        assert [(one.topic, one.count, one.first.id) for one in found.failures] == [("b", 2, 3), ("a", 1, 1)]

    def test_percentiles_are_by_nearest_rank(self) -> None:
        assert latency_of([n / 100 for n in range(100, 0, -1)]) == Latency(0.5, 0.99, 1.0)
        assert latency_of([0.5]) == Latency(0.5, 0.5, 0.5)
        assert latency_of([]) is None

    def test_one_that_goes_on_is_as_long_as_what_has_come(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        recording = bus.record()
        recording.published(Event("a", None, id=1, time=recording.began + 3))
        assert analyse(recording).seconds == pytest.approx(3)
        recording.stop()


class TestTexts:
    @pytest.mark.usefixtures("half_past_five")
    def test_times(self) -> None:
        assert when(0.0) == "1970-01-01 05:30:00+05:30"
        assert when(1e300) == "1e+300 s"

    def test_long_names_are_shortened(self) -> None:
        assert shown("x" * 300) == "x" * 199 + "…"

    def test_latencies_on_a_scale(self) -> None:
        scale = Scale([Latency(1e-5, 1e-4, 1e-3), Latency(0.0, 0.0, 0.0)])
        assert "1 µs" in scale.legend
        assert "1 ms" in scale.legend
        third, two_thirds = f"{Scale.WIDTH / 3:.4g}", f"{2 * Scale.WIDTH / 3:.4g}"
        assert f'<path class="usual" d="M{third} 8H{two_thirds}"/>' in scale.draw(Latency(1e-5, 1e-4, 1e-3))
        assert scale.draw(None) == ""
