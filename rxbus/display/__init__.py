"""Pictures of what happens on a bus: tables and marble diagrams, for notebooks and terminals, and pages."""

from rxbus.display._html import to_html
from rxbus.display._marbles import Marbles, marbles
from rxbus.display._report import report

__all__ = ["Marbles", "marbles", "report", "to_html"]
