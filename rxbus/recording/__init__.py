"""Recordings of what happens on a bus: kept, saved, loaded, analysed, replayed.

`with bus.record("build.>") as recording:` makes one. Each module imports only from those below it:

    _recording   Recording
    _ring        the latest events, with what has become of them
    _records     what a recording holds
"""

from rxbus.recording._recording import Recording
from rxbus.recording._records import Delivery, Passage, Unencodable

__all__ = ["Delivery", "Passage", "Recording", "Unencodable"]
