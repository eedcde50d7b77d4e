"""Marble diagrams: the picture, and the text."""

from __future__ import annotations

import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rxbus import BlockingScheduler, EventBus, InvalidArgument, operators
from rxbus.display import Marbles, marbles
from rxbus.display._svg import HUES
from rxbus.display._text import columns, pixels
from rxbus.recording import Recording, Unencodable
from tests.display.recordings import event, failed, made_up, passage, recordings

SVG = "{http://www.w3.org/2000/svg}"
SLACK = 1.5  # coordinates are rounded


def tree(shown: Marbles) -> ElementTree.Element:
    return ElementTree.fromstring(shown.svg)


def texts(shown: Marbles) -> list[str]:
    return [element.text or "" for element in tree(shown).iter(f"{SVG}text")]


def extents(picture: ElementTree.Element) -> Iterator[tuple[float, float, float, ElementTree.Element]]:
    """Where each text stands: its line, and from where to where it reaches."""
    for element in picture.iter(f"{SVG}text"):
        style = element.get("class", "").split()
        size = 10 if "s" in style else 11
        width = pixels(element.text or "", size) * (1.17 if "b" in style else 1)
        x = float(element.get("x", "")) - width * ("m" in style) / 2 - width * ("e" in style)
        yield float(element.get("y", "")), x, x + width, element


def marks(shown: Marbles, style: str) -> list[ElementTree.Element]:
    return [element for element in tree(shown).iter() if style in element.get("class", "").split()]


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recordings(), st.sampled_from([320, 800, 1500]))
def test_the_picture_is_whole_and_its_labels_stay_inside_and_apart(recording: Recording, width: int) -> None:
    picture = tree(marbles(recording, width=width))
    height = float(picture.get("height", ""))
    lines: defaultdict[float, list[tuple[float, float, str | None]]] = defaultdict(list)
    for y, left, right, element in extents(picture):
        assert left >= -SLACK, element.text
        assert right <= width + SLACK, element.text
        assert 0 <= y <= height
        lines[y].append((left, right, element.text))
    for line in lines.values():
        line.sort()
        for (_, right, one), (left, _, other) in pairwise(line):
            assert right <= left + SLACK, (one, other)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recordings(), st.integers(1, 300))
def test_the_text_keeps_to_its_width_and_has_a_line_per_lane(recording: Recording, width: int) -> None:
    lines = marbles(recording).text(width).split("\n")
    assert max(map(columns, lines)) <= max(width, 20)
    topics = {event.topic for event in recording.events} | {"stage " + one.stage for one in recording.passages}
    assert len(topics) + 1 <= len(lines) <= len(topics) + 2
    assert all(line.isprintable() for line in lines)


def test_nothing_recorded() -> None:
    shown = marbles(made_up())
    assert "no events" in texts(shown)
    assert str(shown) == "0 events on 0 topics"


def test_an_event_is_a_marble_in_its_topics_colour_with_its_payload() -> None:
    shown = marbles(made_up([event(1, "a", 7), event(2, "b", "a longer payload", 1.0)]))
    assert {"a", "b", "7", "'a longer payload'"} <= set(texts(shown))
    assert len(marks(shown, "h0")) == 2  # and the one at the lane's name
    assert len(marks(shown, "h1")) == 2


def test_short_payloads_stand_in_their_marbles() -> None:
    shown = marbles(made_up(event(n, "a", n, n) for n in range(5)))
    circles = {(e.get("cx"), e.get("cy")) for e in tree(shown).iter(f"{SVG}circle")}
    inside = [e for e in tree(shown).iter(f"{SVG}text") if "t0" in e.get("class", "")]
    assert [e.text for e in inside] == ["0", "1", "2", "3", "4"]
    assert {e.get("x") for e in inside} <= {x for x, _ in circles}


def test_time_runs_to_the_right_on_an_axis() -> None:
    shown = marbles(made_up(event(n, "a", n, at) for n, at in enumerate([0, 0.5, 2])))
    x = [float(e.get("cx", "")) for e in tree(shown).iter(f"{SVG}circle") if e.get("r") == "11"]
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(0.25, abs=0.01)
    assert {"0", "0.5 s", "1 s", "1.5 s", "2 s"} <= set(texts(shown))


def test_events_that_leave_no_room_are_counted() -> None:
    shown = marbles(made_up(event(n, "a", n, n / 1000) for n in range(1234)))
    counts = [int(text[1:].replace(",", "")) for text in texts(shown) if re.fullmatch(r"×[\d,]+", text)]
    assert sum(counts) == 1234
    assert len(counts) > 5
    assert "n together" in texts(shown)


def test_in_text_what_a_count_covers_is_counted_in() -> None:
    shown = marbles(made_up(event(n, "a", n, n // 2 / 20) for n in range(100)))
    line = shown.text(60).splitlines()[0]
    assert sum(int(number) for number in re.findall(r"×(\d+)", line)) == 100


def test_all_at_one_moment() -> None:
    shown = marbles(made_up(event(n) for n in range(2_000_000, 2_001_234)))
    assert "×1,234" in texts(shown)
    assert "(×1,234)" in str(shown)
    assert "×1.23M" in texts(marbles(made_up([event(1)] * 1_234_567)))


@given(st.lists(st.floats(0, 3), min_size=1, max_size=300), st.sampled_from([320, 800]))
def test_every_event_is_drawn_or_counted(at: list[float], width: int) -> None:
    shown = marbles(made_up(event(n, "a", "p", t) for n, t in enumerate(at)), width=width)
    counts = [int(text[1:].replace(",", "")) for text in texts(shown) if re.fullmatch(r"×[\d,]+", text)]
    assert sum(counts) + len(list(tree(shown).iter(f"{SVG}g"))) == len(at)
    line = shown.text(100).splitlines()[0].split(" ", 1)[1].removeprefix("a ")
    told = [int(number.replace(",", "")) for number in re.findall(r"\(×([\d,]+)\)", line)]
    assert sum(told) + len(re.findall(r"o|'p'|'…", re.sub(r"\(.*?\)", "", line))) == len(at)


def test_what_could_not_be_saved_is_labelled_by_its_repr() -> None:
    shown = marbles(made_up([event(1, "a", Unencodable("<socket>\n"))]))
    assert r"<socket>\n" in texts(shown)


def test_failed_deliveries_are_marked() -> None:
    shown = marbles(made_up([event(1, "a", 1), event(2, "a", 2, 1.0)], [failed(2), failed(2), failed(99)]))
    assert len(marks(shown, "badge")) == 2  # and the one in the key
    assert "2 failed" in shown.title
    assert "2!" in str(shown)
    crowd = marbles(made_up([event(n, "a", n) for n in range(9)], [failed(n) for n in range(3)]))
    assert "!3" in texts(crowd)
    assert "(×9 !3)" in str(crowd)


def test_a_stage_has_a_lane_below_its_topic_in_the_topics_colour() -> None:
    shown = marbles(
        made_up(
            [event(1, "a", 1), event(2, "b", 2, 0.5)],
            [],
            [passage("of b", 3, 0.6, 2), passage("nobody's", 4, 0.7), passage("gone", 5, 0.8, 99)],
        )
    )
    names = [line[:12].split("-")[0].rstrip(" 1") for line in str(shown).splitlines()]
    assert names[:5] == ["a", "b", "  of b", "  nobody's", "  gone"]
    assert len(marks(shown, "h1")) == 3
    assert "passed a stage" in texts(shown)
    assert "2 events on 2 topics, 3 stages" in shown.title


def test_errors_and_completion_are_drawn() -> None:
    passages = [passage("s", 1, 0.0), passage("s", ValueError("no"), 1.0, kind="error")]
    passages += [
        passage("t", 1, 0.0),
        passage("t", None, 0.0, kind="completed"),
        passage("t", None, 0.0, kind="completed"),
    ]
    passages += [passage("u", "from a file", 0.0, kind="error"), passage("u", 2, 1.0)]
    shown = marbles(made_up([], [], passages))
    assert {"error", "completed", "ValueError('no')", "from a file"} <= set(texts(shown))
    assert len(marks(shown, "bar")) == 2  # one where two observers were, and the key's
    lines = str(shown).splitlines()
    assert lines[0].endswith("#")
    assert lines[1].endswith("1|")
    assert lines[2].endswith(">")


def chain(count: int, topics: int) -> Recording:
    """Events each of which has caused the next."""
    return made_up(event(n, f"t{n % topics}", n * 1000, n, n - 1 or None) for n in range(1, count + 1))


def test_causes_are_linked_to_their_effects_while_they_can_be_told_apart() -> None:
    few = [event(1, "a", 1), event(2, "b", 2, 0.5, 1), event(3, "a", 3, 1.0, 2), event(4, "a", 4, 1.5, 3)]
    shown = marbles(made_up(few))
    assert len(marks(shown, "arrow")) == 4
    assert "cause → effect" in texts(shown)
    for count, topics in [(61, 3), (151, 9)]:
        assert len(marks(marbles(chain(count, topics)), "arrow")) == count - 1 + 1  # and the key's


def test_links_that_are_not_drawn_are_counted() -> None:
    thicket = marbles(chain(90, 2), width=1400)
    assert len(marks(thicket, "link")) == 1  # the key's
    assert "89 are not drawn, too many to be told apart" in texts(thicket)
    assert "cause → effect" not in texts(thicket)


def test_the_heads_of_arrows_lie_above_the_labels_and_their_halos() -> None:
    order = [element.get("class", "") for element in tree(marbles(chain(5, 3))).iter()]
    heads = [place for place, style in enumerate(order) if style == "arrow"][:-1]  # without the key's
    assert len(heads) == 4
    assert min(heads) > max(place for place, style in enumerate(order) if "halo" in style)


def test_a_label_of_which_nothing_telling_is_left_is_left_out() -> None:
    crowd = marbles(made_up(event(n, "a", [["several"], "words"], n) for n in range(30)))
    clipped = [text for text in texts(crowd) if text.endswith("…")]
    assert clipped == [] or min(sum(map(str.isalnum, text)) for text in clipped) >= 2
    assert len(marks(crowd, "halo")) < 30
    assert re.findall(r"[\['\]]…", crowd.text(100)) == []
    assert "[['several'], 'words']" in marbles(made_up([event(1, "a", [["several"], "words"])])).text(100)


def test_what_was_dropped_is_told() -> None:
    assert "1,234 earlier ones dropped" in marbles(made_up([event(1)], dropped=1234)).title


def test_lanes_are_as_many_as_is_said_and_the_others_share_one() -> None:
    events = [event(n, f"t{n % 30}", n, n) for n in range(60)] + [event(99, "t7", 0, 61.0)]
    shown = marbles(made_up(events, [failed(29)]), max_lanes=5)
    lines = str(shown).splitlines()
    assert len(lines) == 5 + 2
    assert [line.split()[0] for line in lines[:4]] == ["t0", "t1", "t2", "t7"]
    assert lines[4].startswith("and 26")
    assert "1 failed" in shown.title
    assert len(marks(shown, "badge")) == 2


def test_more_topics_than_colours_differ_in_shape() -> None:
    shown = marbles(made_up(event(n, f"t{n:02}", "payload", n / 10) for n in range(24)), max_lanes=24)
    kinds = set()
    for element in tree(shown):
        style = element.get("class", "")
        if "edge" in style:
            shape = re.sub(r"[\d.]+", "", element.get("d", element.tag))
            kinds.add((style.split()[0], shape))
    assert len(kinds) == 24
    assert len({colour for colour, _ in kinds}) == len(HUES)


def test_a_part_of_the_time_can_be_looked_at() -> None:
    recording = made_up([event(n, "a", n, n) for n in range(10)], [], [passage("s", 1, 0.0), passage("s", 2, 5.0)])
    assert marbles(recording, start=4, end=6).title == "3 events on 1 topic, 1 stage, in 2 s"
    assert marbles(recording, start=8).title == "2 events on 1 topic, in 1 s"
    assert marbles(recording, end=1).title.startswith("2 events on 1 topic, 1 stage")
    assert marbles(recording, start=20).title == "0 events on 0 topics"


@pytest.mark.parametrize(
    "options",
    [{"width": 10}, {"width": 10**9}, {"width": 800.5}, {"max_lanes": 0}, {"start": 2.0, "end": 1.0}],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        marbles(made_up(), **options)  # type: ignore[arg-type]


def test_moments_of_no_clock_are_left_out_or_told_as_numbers() -> None:
    strange = [event(1, "a", 1, float("nan")), event(2, "a", 2, float("inf")), event(3, "a", 3, -1e300)]
    assert marbles(made_up(strange)).title == "3 events on 1 topic"
    assert len(list(tree(marbles(made_up(strange))).iter(f"{SVG}g"))) == 0
    far = marbles(made_up([event(1, "a", 1, 9e11), event(2, "a", 2, 9.1e11)]))
    assert any(text.startswith("0 is at 9.0") for text in texts(far))


def test_it_tells_where_to_look_closer() -> None:
    """The axis begins with the first event, `start` counts from the recording's beginning."""
    late = made_up([event(1, "a", 1, 0.5), event(2, "a", 2, 0.75), event(3, "a", 3, 1.0)])
    shown = marbles(late)
    assert any(text.endswith(", start=0.500") for text in texts(shown))
    assert shown.text(80).endswith("3 events on 1 topic, in 500 ms; 0 is start=0.500")
    assert marbles(late, start=0.75).text(80).endswith("2 events on 1 topic, in 250 ms; 0 is start=0.750")
    at_once = marbles(made_up([event(1, "a", 1), event(2, "a", 2, 1.0)]))
    assert not any("start=" in text for text in [*texts(at_once), at_once.text(80)])


def test_a_picture_stays_as_it_was_made() -> None:
    recording = made_up([event(1, "a", 1)])
    shown = marbles(recording)
    recording.events.append(event(2, "b", 2))
    assert shown.title == "1 event on 1 topic"
    assert "b" not in texts(shown)


class _Image(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.others: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        else:
            self.others.append(tag)


def test_a_notebook_is_given_an_image_with_a_text_for_those_who_do_not_see_it() -> None:
    shown = marbles(made_up([event(1, '"><script>', "<b>")]))
    parser = _Image()
    parser.feed(shown._repr_html_())
    (image,) = parser.images
    assert parser.others == []
    assert image["alt"] == "Marble diagram: 1 event on 1 topic"
    kind, data = (image["src"] or "").split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    assert b64decode(data).decode() == shown.svg
    assert repr(shown) == str(shown) == shown.text()


def test_the_picture_refers_to_nothing_outside_and_runs_nothing() -> None:
    picture = tree(marbles(made_up([event(n, "<a>", "javascript:alert(1)", n) for n in range(40)])))
    for element in picture.iter():
        assert element.tag.removeprefix(SVG) in {"svg", "title", "style", "rect", "text", "path", "circle", "g"}
        assert not {name for name in element.attrib if name.startswith("on") or "href" in name}
    assert "url" not in (picture.findtext(f"{SVG}style") or "")


def test_a_hundred_thousand_events_make_a_small_picture() -> None:
    events = [event(n, f"topic.{n % 40}", n, n / 1000) for n in range(100_000)]
    assert len(marbles(made_up(events)).svg) < 300_000


def test_a_recording_of_a_bus() -> None:
    with EventBus(BlockingScheduler(max_workers=0)) as bus, Recording(bus) as recording:
        numbers = bus.subscribe("numbers").only_payload().pipe(operators.tap("seen"))
        numbers.subscribe(lambda number: bus.publish("tens", number * 10))
        for number in range(3):
            bus.publish("numbers", number)
    shown = recording.marbles()
    assert recording.to_svg(width=500) == recording.marbles(width=500).svg
    assert shown.title.startswith("6 events on 2 topics, 1 stage")
    assert [line.split("-")[0].split()[0] for line in str(shown).splitlines()[:3]] == ["numbers", "seen", "tens"]
