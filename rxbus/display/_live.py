"""Views that draw themselves again and again: one thread for each, until it is stopped or the bus ends."""

from __future__ import annotations

import atexit
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import Context
from importlib import import_module
from time import thread_time
from typing import ClassVar, Self
from weakref import WeakKeyDictionary

from rxbus import EventBus
from rxbus._bell import Bell
from rxbus.display._meter import Frame, Meter, Selection
from rxbus.errors import MissingExtra

PERIOD = 0.25  # seconds from one frame to the next, at the least
SHARE = 0.05  # of the time of one processor that frames may take: costlier ones come less often

logger = logging.getLogger("rxbus")

_lock = threading.RLock()  # guards `_views`; held while one is made, so that there is one
_views: WeakKeyDictionary[EventBus, dict[type[Live], Live]] = WeakKeyDictionary()


def require(extra: str, what: str, *modules: str) -> None:
    """Checks that packages are there.

    Raises:
        MissingExtra: One is not installed.
    """
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == module.partition(".")[0]:
                raise MissingExtra(extra, what) from error
            raise


class Live(ABC):
    """A view of a bus. Its thread draws frames, a view's own methods say where to."""

    kind: ClassVar[str]

    def __init__(self, bus: EventBus) -> None:
        self._meter = Meter(bus)
        self._ended = False
        self._end = Bell()  # wakes its thread; no `threading.Event`, see `Bell`
        self._turn = threading.RLock()  # held while a frame is measured and drawn, so that none comes after a newer one
        self._last: Frame | None = None
        self._closed = False  # the last one has been drawn
        # A context of its own: Jupyter looks in there for the cell that a thread belongs to. This one belongs to none,
        # so that what it sends goes with whichever cell runs, and front ends that listen to that one only get it.
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name=f"rxbus-{self.kind}", daemon=True)
        self._at_close = bus.on_close(self.stop)

    @classmethod
    def of(cls, bus: EventBus) -> Self:
        """Gives the view of its kind that the bus has, or one that begins now.

        Raises:
            MissingExtra: Packages are not installed.
            BusClosed: The bus has been closed.
        """
        with _lock:
            views = _views.setdefault(bus, {})
            found = views.get(cls)
            if isinstance(found, cls) and found.running:
                return found
            made = cls(bus)
            made._start()
            views[cls] = made
            return made

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return not self._ended

    def stop(self) -> None:
        """Draws a last frame, and ends the thread. A second call does nothing; the bus's end does it, too."""
        self._ended = True
        self._end.ring()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        try:
            self._tick(self._begin)
            atexit.register(self.stop)  # a program that ends gets its cursor back
            self._thread.start()
        except BaseException:  # Ctrl-C, perhaps; the thread, should it come nevertheless, ends at once
            self._ended = True
            self._end.ring()
            self._finish()
            raise

    def _run(self) -> None:
        pause = PERIOD
        try:
            while not (self._end.wait(pause) or self._ended):
                begin = thread_time()
                self._tick(self._draw)
                pause = max(PERIOD, (thread_time() - begin) / SHARE)
        except Exception:  # of what it draws on, which may be anybody's; the program that is looked at goes on
            logger.exception("a live view has failed, and ends: %r", self)
        self._ended = True
        self._finish()

    def _finish(self) -> None:
        """Draws a last frame; a second call does nothing."""
        self._at_close.dispose()
        atexit.unregister(self.stop)
        with self._turn:
            if self._closed:
                return
            try:
                self._tick(self._close, always=True)
            except Exception:  # the same; it must come to its end
                logger.exception("a live view could not draw its end: %r", self)
            self._meter.close()
            self._closed = True

    def _tick(self, draw: Callable[[Frame], None], always: bool = False) -> None:
        """Draws a frame, where something has changed."""
        with self._turn:
            frame = None if self._closed else self._meter.frame(self._selection())
            if frame is None:  # it has ended, or the bus exists no more
                self._ended = True
            last = self._last
            self._last = frame = frame or last
            if frame is not None and (always or frame != last):
                draw(frame)

    def _selection(self) -> Selection:
        """What the next frame is to tell of."""
        return Selection()

    @abstractmethod
    def _begin(self, frame: Frame) -> None:
        """Draws the first frame; on the thread that has called for the view."""

    @abstractmethod
    def _draw(self, frame: Frame) -> None:
        """Draws a frame; on the view's thread, as what follows."""

    @abstractmethod
    def _close(self, frame: Frame) -> None:
        """Draws the last one."""
