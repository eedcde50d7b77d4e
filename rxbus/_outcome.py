"""How a publish ended: its receipt, or the error that tells what failed and who was late."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from rxbus._acknowledgement import Receipt
from rxbus._fan_out import FanOut, ledger, pending
from rxbus._here import local, places
from rxbus._standing import frames_of, waiting_with
from rxbus.errors import AcknowledgementTimeout, PublishError

if TYPE_CHECKING:
    from rxbus._observer import Feed


def nobody(fan: FanOut) -> Receipt:
    """Tells of an event that has come to nobody."""
    receipt = Receipt(fan.event, 0)
    if fan.tracers is not None:
        fan.tracers.settled(receipt)
    return receipt


def outcome(topic: str, event: Any, fan: FanOut, count: int, in_time: bool, timeout: float | None) -> Receipt:
    """Tells how it all ended, once the publisher waits no longer."""
    with ledger:
        queued = fan.missing - fan.ended
        receipt = Receipt(event, count - queued - fan.lost, queued)
    if fan.tracers is not None and in_time:
        fan.tracers.settled(receipt)
    wait = fan.wait
    if wait is None:
        return receipt
    failures = wait.take_failures()
    for error in failures:
        if not isinstance(error, Exception):
            raise _noting(error, [other for other in failures if other is not error])
    if not in_time:
        late = [one.feed for one in pending((fan,) if fan.root is not None else tuple(wait.fans))]
        names = [feed.name for feed in late] + (_inside(fan) if fan.root is None else [])
        given = inf if timeout is None else timeout  # without one, it is virtual time, and they never would
        if given < inf or not _is_held_up_by(late, fan):
            raise _noting(AcknowledgementTimeout(topic, given, tuple(dict.fromkeys(names))), failures)
    if failures:
        errors = [error for error in failures if isinstance(error, Exception)]
        raise PublishError(f"publish to {topic!r}: {len(errors)} failed", errors, receipt)
    return receipt


def _is_held_up_by(late: list[Feed], fan: FanOut) -> bool:
    """Whether an outermost publish is one of a timed action that this very thread does in the midst of a handler.

    That can be in virtual time only. The handler gets the event when it has returned, which it cannot before this does.
    """
    below = waiting_with(frames_of(local.here)).lanes
    return fan.root is None and any(feed.lane in below for feed in late)


def _noting(error: BaseException, failures: list[BaseException]) -> BaseException:
    """Tells of failures in the notes of an error that goes before them.

    A function, since a frame that names what it raises is a cycle, and would keep the payload.
    """
    for failure in failures:
        with suppress(Exception):  # see FanOut.fail
            error.add_note("failed: " + "; ".join((repr(failure), *getattr(failure, "__notes__", ()))))
    return error


def _inside(fan: FanOut) -> list[str]:
    """The observers of an event's tree that threads are inside of."""
    here_and_there = [(here.feed, here.fan) for here in list(places.values())]
    return [feed.name for feed, one in here_and_there if feed is not None and one is not None and one.top is fan]
