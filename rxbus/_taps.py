"""What can be hung on a bus besides observers, and what it tells of itself: tracers, cells, its end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from reactivex import abc
from reactivex.disposable import Disposable

from rxbus._cells import Cell, Cells, current_cell
from rxbus._fan_out import logger
from rxbus._log import Hub
from rxbus._registry import Registry
from rxbus._statistics import TopicStatistics, of_topics
from rxbus._trace import Tracer
from rxbus._wings import Shown
from rxbus.errors import BusClosed, InvalidArgument


class Tapped(Shown):
    """The part of an `EventBus` that watches it."""

    def __init__(self, hub: Hub, registry: Registry) -> None:
        self._hub = hub
        self._registry = registry
        self._cells = Cells(hub)
        self._at_close: dict[object, Callable[[], object]] = {}

    def topic_statistics(self) -> dict[str, TopicStatistics]:
        """Gives a frozen snapshot of each topic that has been published or subscribed to, by name.

        Topics that nobody has asked for are forgotten once there are thousands of them and they have long been quiet.
        """
        return of_topics(self._registry, self._hub)

    def trace(self, tracer: Tracer) -> abc.DisposableBase:
        """Attaches a tracer: from now on it is told of every publish, delivery and receipt; see `Tracer`.

        What happens to events that were published before is not told. While a tracer is attached, each delivery takes
        some ten microseconds more.

        Returns:
            What detaches it: after `dispose` it is told of no further event. The bus's end detaches it too.

        Raises:
            InvalidArgument: It is not a tracer, or it is attached already.
            BusClosed: The bus has been closed.
        """
        if not isinstance(tracer, Tracer):
            raise InvalidArgument(f"a tracer has published(), delivered() and settled(), but not {tracer!r}")
        hub = self._hub  # what detaches it keeps no bus alive
        if hub.closing:
            raise BusClosed(hub.why)
        if not hub.trace(tracer):
            raise InvalidArgument(f"the tracer is attached already: {tracer!r}")
        cell, member = current_cell(hub), object()  # tracers may be equal to each other, or have no hash

        def detach() -> None:
            hub.untrace(tracer)
            if cell is not None:
                cell.forget(member)

        def end() -> None:
            try:
                getattr(tracer, "stop", detach)()  # a recording is to know that it has come to its end
            except Exception:  # what watches must not harm what it watches
                logger.exception("a tracer has failed to stop, and has been detached: %r", tracer)
            finally:
                detach()

        if cell is not None:
            cell.add(member, end)
        return Disposable(detach)

    def cell(self, name: str | None = None) -> Cell:
        """Makes a block that can run again and again, as a notebook's cell does: `with bus.cell():`.

        Entering it completes all observers that the block attached when it ran before, also those attached by handlers
        of its since, and detaches its tracers; those that have a `stop`, as recordings do, it stops. A block that fails
        leaves what it has attached, until it runs again.

        Args:
            name: What makes it the same block. By default the notebook's cell, though its code be changed; in a
                program, the place in the code. (In front ends that do not tell which cell runs, as IPython in a
                terminal, a cell that has been changed is another one: give it a name there.)

        Raises:
            InvalidArgument: The name is none.
        """
        return self._cells.cell(name, sys._getframe(1))

    def on_close(self, callback: Callable[[], object]) -> abc.DisposableBase:
        """Has something called once the bus has been closed: all observers have been completed, by then.

        A callback that raises is logged. It is called on the thread that closes the bus, which waits for it.

        Returns:
            What takes it back.

        Raises:
            BusClosed: The bus has been closed.
        """
        if self._hub.closing:
            raise BusClosed(self._hub.why)
        key, callbacks = object(), self._at_close  # what takes it back keeps no bus alive, either
        callbacks[key] = callback
        if self._hub.closed and callbacks.pop(key, None) is not None:  # closed meanwhile: nobody will call it
            raise BusClosed(self._hub.why)

        def take_back() -> None:
            callbacks.pop(key, None)

        return Disposable(take_back)

    def _call_back(self) -> None:
        while self._at_close:  # other threads may add some, and take some back
            for key in list(self._at_close):  # no `items`: see Watch.look
                callback = self._at_close.get(key)
                try:
                    if callback is not None:
                        callback()
                except Exception:  # the bus has been closed all the same, and the others are to be called
                    logger.exception("what was to be called when the bus had been closed has failed: %r", callback)
                self._at_close.pop(key, None)
