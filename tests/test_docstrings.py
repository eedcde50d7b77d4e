"""Docstrings are written so that the documentation's site shows them as they are meant."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cached_property

import rxbus


def properties() -> Iterator[tuple[str, str]]:
    """The properties of all classes of the package: what they are called, and what is said of them."""
    for found in pkgutil.walk_packages(rxbus.__path__, "rxbus."):
        if found.name == "rxbus.__main__":  # which runs when it is imported
            continue
        module = importlib.import_module(found.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            for name, value in vars(kind).items():
                if kind.__module__ == module.__name__ and isinstance(value, property | cached_property):
                    yield f"{kind.__qualname__}.{name}", value.__doc__ or ""


def test_no_property_has_a_colon_in_its_first_line() -> None:
    """The site takes what is before it for a type."""
    first = {name: re.sub("`.*?`", "", said.partition("\n")[0]) for name, said in properties()}
    assert len(first) > 20
    assert [name for name, line in first.items() if re.search(r":\s", line)] == []
