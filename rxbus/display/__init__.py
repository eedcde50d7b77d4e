"""Pictures of what happens on a bus: live views."""

from rxbus.display._monitor import Monitor, monitor
from rxbus.display._top import Top, top

__all__ = ["Monitor", "Top", "monitor", "top"]
