"""Pictures of what happens on a bus: tables and marble diagrams, for notebooks and terminals."""

from rxbus.display._html import to_html
from rxbus.display._marbles import Marbles, marbles

__all__ = ["Marbles", "marbles", "to_html"]
