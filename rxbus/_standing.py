"""Who waits with a thread: the lanes, buffers, event loops and deliveries that cannot go on before it does."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, NamedTuple

from rxbus._here import Frame, Here, Origin

if TYPE_CHECKING:
    from rxbus._acknowledgement import Delivery
    from rxbus._fan_out import FanOut
    from rxbus._lane import Lane


def frames_of(here: Here) -> list[Frame]:
    """The places in which a thread is: of its own stack, where it may help other publishers in the midst of its own."""
    return [(here.feed, here.fan, here.origin), *here.waits, *((None, fan, None) for fan in here.outer)]


class Standing(NamedTuple):
    """What waits as long as a thread does."""

    lanes: set[Lane]  # whose turn goes on
    origins: set[Origin]  # the items that buffers have in hand
    loops: set[AbstractEventLoop | None]  # that are blocked
    deliveries: set[Delivery]  # that do not end


def waiting_with(frames: list[Frame]) -> Standing:
    """What waits as long as a thread with these frames does: there, and with the publishers that wait for it."""
    standing = Standing(set(), set(), set(), set())
    seen: set[FanOut] = set()
    ahead = list(frames)
    while ahead:
        feed, fan, origin = ahead.pop()
        if feed is not None:
            standing.lanes.add(feed.lane)
            standing.deliveries.update(one for one in feed.lane.all_deliveries() if (one.fan, one.feed) == (fan, feed))
        if origin is not None:
            standing.origins.add(origin)
        if fan is not None and fan not in seen:
            seen.add(fan)
            standing.loops.add(fan.loop)
            ahead += [(fan.by, fan.parent, fan.origin), *fan.below, *fan.top.below]
    standing.loops.discard(None)
    return standing
