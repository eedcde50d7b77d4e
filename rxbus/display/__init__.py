"""Pictures of what happens on a bus: tables and marble diagrams, and live views, for notebooks and terminals."""

from rxbus.display._html import to_html
from rxbus.display._marbles import Marbles, marbles
from rxbus.display._monitor import Monitor, monitor
from rxbus.display._top import Top, top

__all__ = ["Marbles", "Monitor", "Top", "marbles", "monitor", "to_html", "top"]
