"""Tools for tests of programs that use rxbus; with pytest, the fixtures `bus`, `virtual_bus` and `virtual_clock` too.

    expect          waits for an event
    expect_failure  waits for a failure that no publisher is told of
    assert_marbles  compares recorded events with a marble diagram
    virtual_bus     a bus in virtual time
    Check           sees to it that a test leaves nothing behind: what the fixtures do

Each module imports only from those below it:

    _check    what is left behind
    _expect   what is to come
    _marbles  what has come, as diagrams
"""

from rxbus import VirtualClock
from rxbus.testing._check import Check, Leftovers, virtual_bus
from rxbus.testing._expect import expect, expect_failure
from rxbus.testing._marbles import assert_marbles

__all__ = [
    "Check",
    "Leftovers",
    "VirtualClock",
    "assert_marbles",
    "expect",
    "expect_failure",
    "virtual_bus",
]
