"""Marble diagrams as a browser draws them, which knows how wide its fonts are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rxbus.display import marbles
from tests.display.recordings import NAMES, PAYLOADS, event, failed, made_up, passage

from . import hostile

if TYPE_CHECKING:
    from pathlib import Path

    from rxbus.recording import Recording

    from .conftest import NewPage, Picture

# Each text, with the room that it has: the pill or badge before it, in whose middle it stands, or the picture.
TEXTS = """svg => [...svg.querySelectorAll("text")].map(text => {
  const before = text.previousElementSibling;
  const room = text.matches(".m:not(.halo)") && before?.matches("rect:not(.card)") ? before : svg;
  const box = ({ left, top, right, bottom }) => [left, top, right, bottom];
  return [text.textContent, box(text.getBoundingClientRect()), box(room.getBoundingClientRect())];
})"""


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they do by more than a pixel sideways, and by more than a font's line is apart from the next."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width > 1 and height > 5


def hard_to_draw() -> Recording:
    """Long names, scripts that are wide or run the other way, marks without an end, markup."""
    events = [event(id, NAMES[id % len(NAMES)], PAYLOADS[id % len(PAYLOADS)], at=id / 10) for id in range(120)]
    stage = [passage(hostile.NAME, payload, at=at, event=at) for at, payload in enumerate(PAYLOADS[:10])]
    return made_up(events, [failed(7)], [*stage, passage(hostile.NAME, ValueError(hostile.NAME), 11, kind="error")])


def dense() -> Recording:
    """Many events, of which some have failed."""
    times = [(id // 50) ** 2 + id % 50 / 10 for id in range(3000)]
    events = [event(id, f"sensor.{id % 5}", f"reading {id}", at=at) for id, at in enumerate(times)]
    return made_up(events, [failed(id) for id in range(0, 3000, 7)], dropped=12345)


def chain() -> Recording:
    """Events that lead to each other."""
    return made_up(
        event(id, f"step.{id % 9}", "W" * (id % 30), at=id * id / 50, cause=id - 1 or None) for id in range(1, 25)
    )


@pytest.mark.parametrize("width", [320, 800, 1500])
@pytest.mark.parametrize("recording", [hard_to_draw, dense, chain], ids=lambda make: make.__name__)
def test_texts_stay_in_their_room_and_apart(
    recording: Callable[[], Recording], width: int, new_page: NewPage, tmp_path: Path, picture: Picture
) -> None:
    file = tmp_path / "marbles.svg"
    file.write_text(marbles(recording(), width=width).svg, "utf-8")
    page = new_page()
    page.goto(file.as_uri())
    drawn = page.locator("svg")
    texts = [(content, Box(*box), Box(*room)) for content, box, room in drawn.evaluate(TEXTS)]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        picture(drawn, scheme)
    assert len(texts) > 10
    assert [text for text, box, room in texts if box.left < room.left or box.right > room.right] == []
    assert [text for text, box, room in texts if box.top < room.top - 2 or box.bottom > room.bottom + 2] == []
    assert [(one, other) for (one, a, _), (other, b, _) in combinations(texts, 2) if a.overlaps(b)] == []
