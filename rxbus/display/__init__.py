"""Pictures of what happens on a bus: tables, marble diagrams and live views, for notebooks and terminals, and pages."""

from rxbus.display._html import to_html
from rxbus.display._marbles import Marbles, marbles
from rxbus.display._monitor import Monitor, monitor
from rxbus.display._report import report
from rxbus.display._top import Top, top

__all__ = ["Marbles", "Monitor", "Top", "marbles", "monitor", "report", "to_html", "top"]
