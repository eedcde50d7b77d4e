"""Recordings as files, made by hand: of any times, names and damage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rxbus.recording import Recording

HOSTILE = '<b class="[red]x">&amp;\'"</code><script>alert(1)</script>\x00\x1b[31m\u202e'
HOSTILE_TOPIC = "<script[red]src='//x'&amp;\"</script\u202e"  # without what no topic may have

Line = dict[str, Any]


def event(id: int, topic: str = "a", time: float = 0.0, payload: Any = None, cause: int | None = None) -> Line:
    return {"type": "event", "id": id, "topic": topic, "time": time, "payload": payload, "cause": cause}


def delivery(event: int, observer: str = "o", start: float = 0.0, end: float = 0.0, error: str | None = None) -> Line:
    return {
        "type": "delivery",
        "event": event,
        "observer": observer,
        "start": start,
        "end": end,
        "thread": "MainThread",
        "error": error,
    }


def write(file: Path, lines: Iterable[Line], **header: Any) -> Path:
    """Writes a recording that lasted from second 0 to 10, unless told otherwise."""
    body = list(lines)
    kinds = {kind: sum(f"{line['type']}s" == kind for line in body) for kind in ("events", "deliveries", "passages")}
    kinds["deliveries"] = sum(line["type"] == "delivery" for line in body)
    head = {"rxbus": "recording", "version": 1, "pattern": ">", "maxlen": 100_000, "began": 0.0, "ended": 10.0}
    first = {**head, "dropped": 0, "dropped_passages": 0, **kinds, **header}
    file.write_text("".join(json.dumps(line) + "\n" for line in (first, *body)), "utf-8")
    return file


def made(directory: Path, lines: Iterable[Line], **header: Any) -> Recording:
    return Recording.load(write(directory / "made.rec", lines, **header))
