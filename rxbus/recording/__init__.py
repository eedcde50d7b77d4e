"""Recordings of what happens on a bus: kept, saved, loaded, analysed, replayed.

`with bus.record("build.>") as recording:` makes one. Each module imports only from those below it:

    _recording   Recording
    _ring        the latest events, with what has become of them
    _file        JSON lines
    _perfetto    traces for Perfetto
    _replay      publishing it all again
    _causes      which event caused which
    _frames      pandas
    _replaced    files that are written as a whole
    _records     what a recording holds
"""

from rxbus.recording._causes import Cause, Causes
from rxbus.recording._file import DamagedRecording, NotARecording
from rxbus.recording._recording import Recording
from rxbus.recording._records import Delivery, Passage, Unencodable
from rxbus.recording._replay import Replay

__all__ = [
    "Cause",
    "Causes",
    "DamagedRecording",
    "Delivery",
    "NotARecording",
    "Passage",
    "Recording",
    "Replay",
    "Unencodable",
]
