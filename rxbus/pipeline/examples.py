"""A pipeline that builds a small Python project, from an empty directory to a published wheel.

    rxbus pipeline run rxbus/pipeline/examples.py

It keeps its state in `./builds`, needs a POSIX shell and a package index for pip, and waits for a trigger before it
publishes. Its steps:

    (1,)              a workspace: in it
    (1, 1)              the project is written,
    (2, 1)              a virtual environment made, and what builds wheels installed there;
    (3, 1)              in the project's directory
    (1, 3, 1)             it is linted and tested in parallel,
    (2, 3, 1)             a wheel is built, and put by where the workspace's end does not reach it
    (2,)              somebody agrees
    (3,)              the wheel is published: copied, with its checksum beside it
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from os import PathLike
from pathlib import Path
from typing import Any

from rxbus.pipeline import (
    Pipeline,
    StepContext,
    alias,
    chain,
    in_cwd,
    in_parallel,
    run,
    shell,
    wait_for_manual_trigger,
    with_workspace,
)

PROJECT = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=61", "wheel"]
build-backend = "setuptools.build_meta"

[project]
name = "greeting"
version = "1.0"
requires-python = ">=3.11"

[tool.setuptools]
py-modules = ["greeting"]
""",
    "greeting.py": '''\
"""Says hello."""


def greet(name: str) -> str:
    """Gives a greeting."""
    return f"Hello, {name}!"
''',
    "test_greeting.py": """\
import unittest

from greeting import greet


class Greeting(unittest.TestCase):
    def test_it_names_whom_it_greets(self) -> None:
        self.assertEqual(greet("world"), "Hello, world!")
""",
}


def example(home: str | PathLike[str], published: str | PathLike[str] | None = None) -> Pipeline:
    """Makes the pipeline.

    Args:
        home: The directory that keeps the builds' state, and in `wheels` what they have built.
        published: The directory to publish to; by default `published` in home.
    """
    home = Path(home).absolute()
    published = home / "published" if published is None else Path(published).absolute()

    def write_project(args: dict[str, Any], ctx: StepContext) -> dict[str, Any]:
        project = ctx.cwd / "greeting"
        project.mkdir()
        for name, text in PROJECT.items():
            (project / name).write_text(text, "utf-8")
        return {"status": "success", "out": f"{len(PROJECT)} files"}

    def keep_wheel(args: dict[str, Any], ctx: StepContext) -> dict[str, Any]:
        [built] = (ctx.cwd / "dist").glob("*.whl")
        wheels = home / "wheels" / f"build-{ctx.build_number}"
        wheels.mkdir(parents=True, exist_ok=True)
        kept = shutil.copy2(built, wheels)
        # Under "global" it reaches all later steps, in a retriggered build too, where this step is not run again.
        return {"status": "success", "global": {"wheel": str(kept)}}

    def publish(args: dict[str, Any], ctx: StepContext) -> dict[str, Any]:
        wheel = Path(args["global"]["wheel"])
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        published.mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel, published)
        (published / f"{wheel.name}.sha256").write_text(f"{digest}  {wheel.name}\n", "utf-8")
        return {"status": "success", "sha256": digest, "out": f"published {wheel.name}"}

    pip = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment = run(
        # Which Python it is stays out of the step's name: by names, a retrigger tells whether the steps are the same.
        shell('"$PYTHON" -m venv venv', env={"PYTHON": sys.executable}),
        shell("venv/bin/python -m pip install --quiet setuptools wheel", env=pip),
    )
    lint = shell("../venv/bin/python -W error -m compileall -q .")
    test = shell("../venv/bin/python -m unittest --verbose")
    wheel = shell("../venv/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .", env=pip)
    return Pipeline(
        [
            with_workspace(
                write_project,
                alias("environment", environment),
                in_cwd(
                    "greeting",
                    in_parallel(alias("lint", lint), alias("test", test)),
                    alias("wheel", chain(wheel, keep_wheel)),
                ),
            ),
            alias("agreement", wait_for_manual_trigger),
            publish,
        ],
        home=home,
    )


def __getattr__(name: str) -> Pipeline:
    """Makes `pipeline` when it is first asked for, so that importing the module makes no directory."""
    if name != "pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    pipeline = globals()["pipeline"] = example("builds")
    return pipeline
