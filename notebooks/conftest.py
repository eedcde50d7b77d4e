"""The notebooks are tests: nbmake executes them (`--nbmake`, in pytest's settings)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest

collect_ignore = [] if os.name == "posix" else ["pipelines.ipynb"]  # it needs a POSIX shell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Keeps out the settings of whoever runs them."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", directory)
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings("default"))  # what warns in this process is Jupyter's own
