"""Causal order: which causes of an event an observer has not come to. Asked in the turn of its lane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rxbus._here import Trail

if TYPE_CHECKING:
    from rxbus._lane import Lane
    from rxbus._observer import Feed


def owed_causes(lane: Lane, trail: Trail) -> list[tuple[Feed, int]]:
    """The causes of an event that a lane has not come to, the nearest first.

    A cause that it has been given has been caught up with itself, and ends the search; one from before it was attached
    to that topic, or from where it has left, tells nothing of the others.
    """
    owed: list[tuple[Feed, int]] = []
    cause: Trail | None = trail
    while cause is not None:
        feeds = [feed for one in list(lane.attachments) if (feed := one.feeds.get(cause.log)) is not None]
        late = [(feed, cause.id) for feed in feeds if feed.owes(cause.id)]
        if not late and any(feed.first < cause.id and feed.on_next is not None for feed in feeds):
            break
        owed += late
        cause = cause.before
    return owed
