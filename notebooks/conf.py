"""The documentation's site: `python -m sphinx -W notebooks build/site`, with the extra `docs`.

Its pages are the README, the notebooks, which are executed as the site is built, and the docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rxbus import __version__

project = "rxbus"
release = version = __version__
author = "the rxbus maintainers"
copyright = "the rxbus maintainers; MIT licence"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "rxbus"
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

myst_heading_anchors = 4
nb_execution_mode = "auto"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # what a struct's docstring says of its fields does not meet the fields themselves


# Where the files that the README and others link to are shown.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md", "rxbus/pipeline/examples.py": "example.md"}


def lead_to_pages(app: Any, path: Path, parent: str, contents: list[str]) -> None:
    """Has links to the project's files lead to the pages of the site."""

    def page(link: re.Match[str]) -> str:
        target = link[1]
        return f"]({PAGES.get(target) or target.removeprefix('notebooks/')})"

    contents[0] = re.sub(r"\]\(([\w/.]+)\)", page, contents[0])


def setup(app: Any) -> None:
    app.connect("include-read", lead_to_pages)
