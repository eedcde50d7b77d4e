"""The documentation's site: `python -m sphinx -W notebooks build/site`, with the extra `docs`.

Its pages are the README, the notebooks, which are executed as the site is built (not with `-D nb_execution_mode=off`),
and the docstrings. Nothing in it is loaded from elsewhere.
"""

from __future__ import annotations

import re
from typing import Any

from rxbus import __version__

project = "rxbus"
release = version = __version__
author = "the rxbus maintainers"
copyright = "the rxbus maintainers; MIT licence"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "rxbus"
html_static_path = html_css_files = ["site.css"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

myst_heading_anchors = 4
nb_execution_mode = "auto"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True
# A widget needs a kernel, and its scripts would come from elsewhere: its text stands for it.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

default_role = "code"  # what stands in backticks in a docstring
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # what a struct's docstring says of its fields does not meet the fields themselves


# Where the files that the README, the notebooks and others link to are shown.
PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "notebooks/": "index.md",
    "rxbus/pipeline/examples.py": "example.md",
}


def lead_to_pages(contents: list[str]) -> None:
    """Has links to the project's files lead to the pages of the site."""

    def page(link: re.Match[str]) -> str:
        target = link["target"]
        return f"]({PAGES.get(target) or target.removeprefix('notebooks/')}"

    contents[0] = re.sub(r"\]\((?:\.\./)?(?P<target>notebooks/|[\w/-]+\.\w+)(?=[)#])", page, contents[0])


def keep_lists(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Has what a module's docstring lists, indented, be shown as it is written."""
    if what == "module":
        lines[:] = re.sub(r"(?m)^(\S.*\n\n)(?=    )", r"\1.. code-block:: text\n\n", "\n".join(lines)).split("\n")


def setup(app: Any) -> None:
    app.connect("source-read", lambda app, name, contents: lead_to_pages(contents))
    app.connect("include-read", lambda app, path, parent, contents: lead_to_pages(contents))
    app.connect("autodoc-process-docstring", keep_lists)
