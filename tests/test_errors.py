"""The error tree: what is what, and messages that are made from attributes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import rxbus
from rxbus import Event, EventBus, PublishError, Receipt, errors

RECEIPT = Receipt(Event("prices", 1.5, 7, 0.0), acknowledged=2)

EXAMPLES: list[errors.RxBusError] = [
    errors.RxBusError("anything"),
    errors.InvalidArgument("a bad value"),
    errors.InvalidTopic("a b", "it holds white space"),
    errors.BusClosed("the bus is closed"),
    errors.MissingExtra("cli", "rxbus.cli"),
    errors.AcknowledgementTimeout("prices", 1.5, ("slow", "slower")),
    errors.FeedbackLoop(("ping", "pong"), 9, "player"),
    errors.EventLoopBlocked("prices", "an async handler"),
    errors.BufferOverflow(3, "overflow='error'"),
    errors.TimeStandsStill(1.5, 100),
]
GROUP = PublishError("two failed", [ValueError("one"), KeyError("two")], RECEIPT)


def _class_of(error: BaseException) -> str:
    return type(error).__name__


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (errors.InvalidArgument, ValueError),
        (errors.InvalidTopic, errors.InvalidArgument),
        (errors.InvalidTopic, ValueError),
        (errors.MissingExtra, ImportError),
        (errors.PublishError, ExceptionGroup),
        (errors.AcknowledgementTimeout, TimeoutError),
    ],
)
def test_an_error_can_be_caught_as_what_python_calls_it(kind: type[BaseException], also: type[BaseException]) -> None:
    assert issubclass(kind, also)


def test_all_errors_are_public_and_in_one_tree() -> None:
    own = {n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == errors.__name__}
    assert set(errors.__all__) == own == {_class_of(error) for error in [*EXAMPLES, GROUP]}
    assert all(issubclass(getattr(errors, name), errors.RxBusError) for name in own)
    assert all(name in (errors.__doc__ or "") for name in own)
    assert {name for name in own if getattr(rxbus, name, None) is getattr(errors, name)} >= own - {"MissingExtra"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.InvalidTopic("a b", "it is bad"), "'a b' is not a topic: it is bad"),
        (errors.InvalidTopic(None, "it is bad"), "None is not a topic: it is bad"),
        (
            errors.MissingExtra("cli", "rxbus.cli"),
            "rxbus.cli needs the extra 'cli': install rxbus with it, in a clone by pip install '.[cli]'",
        ),
        (
            errors.AcknowledgementTimeout("prices", 1.5, ("slow", "slower")),
            "publish to 'prices': not acknowledged within 1.5 s by slow, slower",
        ),
        (errors.BufferOverflow(3, "it may not wait"), "a buffer of 3 is full: it may not wait"),
    ],
    ids=str,
)
def test_the_message_is_made_from_the_attributes(error: errors.RxBusError, message: str) -> None:
    assert str(error) == message


def test_a_changed_attribute_changes_the_message() -> None:
    error = errors.AcknowledgementTimeout("prices", 1.5, ("slow",))
    error.pending = ("other",)
    assert "other" in str(error)
    assert "slow" not in str(error)


def test_a_long_name_is_cut_in_the_message_and_whole_in_the_attribute() -> None:
    error = errors.InvalidTopic("x" * 1000, "it is long")
    assert len(str(error)) < 150
    assert "..." in str(error)
    assert error.topic == "x" * 1000


def test_a_feedback_loop_shows_the_way_round() -> None:
    error = errors.FeedbackLoop(("ping", "pong"), 9, "player")
    assert "ping -> pong -> ping" in str(error)
    assert "9" in str(error)
    assert "player" in str(error)
    assert (error.topics, error.max_chain, error.observer) == (("ping", "pong"), 9, "player")


def test_a_blocked_event_loop_names_the_topic_the_observer_and_the_way_out() -> None:
    error = errors.EventLoopBlocked("prices", "an async handler")
    assert "'prices'" in str(error)
    assert "an async handler" in str(error)
    assert "publish_async" in str(error)


def test_an_acknowledgement_timeout_does_not_pose_as_a_failed_system_call() -> None:
    error = errors.AcknowledgementTimeout("prices", 1.5, ("slow",))
    assert error.errno is None
    assert error.filename is None


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("error", EXAMPLES, ids=_class_of)
def test_an_error_survives_copying_and_pickling(error: errors.RxBusError, again: Callable[[Any], Any]) -> None:
    twin = again(error)
    assert type(twin) is type(error)
    assert (str(twin), vars(twin)) == (str(error), vars(error))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_publish_error_survives_copying_and_pickling(again: Callable[[Any], Any]) -> None:
    twin = again(GROUP)
    assert isinstance(twin, PublishError)
    assert (str(twin), twin.message, twin.receipt) == (str(GROUP), GROUP.message, RECEIPT)
    assert [repr(error) for error in twin.exceptions] == [repr(error) for error in GROUP.exceptions]


def test_a_publish_error_says_what_and_how_many() -> None:
    assert str(GROUP) == "two failed (2 sub-exceptions)"
    assert GROUP.receipt is RECEIPT


def test_except_star_gets_its_part_with_the_receipt() -> None:
    parts: list[BaseExceptionGroup[BaseException]] = []
    try:
        raise GROUP
    except* ValueError as part:
        parts.append(part)
    except* KeyError as part:
        parts.append(part)
    assert [[_class_of(error) for error in part.exceptions] for part in parts] == [["ValueError"], ["KeyError"]]
    assert all(isinstance(part, PublishError) and part.receipt is RECEIPT for part in parts)


def test_split_and_subgroup_keep_the_kind_and_the_receipt() -> None:
    match, rest = GROUP.split(ValueError)
    some = GROUP.subgroup(lambda error: isinstance(error, KeyError))
    for part, kind in ((match, ValueError), (rest, KeyError), (some, KeyError)):
        assert isinstance(part, PublishError)
        assert (part.receipt, [type(error) for error in part.exceptions]) == (RECEIPT, [kind])
    assert GROUP.subgroup(OSError) is None


def test_a_publish_error_holds_every_failure_noted_with_its_observer(bus: EventBus) -> None:
    def fail(event: Event[int]) -> None:
        raise ValueError(event.payload)

    bus.subscribe("a", name="first").subscribe(fail)
    bus.subscribe("a").subscribe(lambda event: None)
    bus.subscribe("a", name="second").subscribe(fail)
    with pytest.raises(PublishError) as caught:
        bus.publish("a", 3)
    failures = caught.value.exceptions
    assert [repr(failure) for failure in failures] == ["ValueError(3)"] * 2
    assert sorted(failure.__notes__[0] for failure in failures) == ["in first, on topic 'a'", "in second, on topic 'a'"]
    assert caught.value.receipt.acknowledged == 1
    assert caught.value.receipt.event.payload == 3
