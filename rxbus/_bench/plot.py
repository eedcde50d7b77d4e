"""The figures of `rxbus bench`, drawn by matplotlib: a column of panels for each number of topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from rxbus._bench.peers import ALL, Loop, Rxbus
from rxbus._bench.rounds import Figures
from rxbus.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart; the markers say the same.
COLOURS = ("#777777", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("x", "o", "s", "^", "D", "v", "P")
LOOKS = {kind.name: look for kind, look in zip(ALL, zip(COLOURS, MARKERS, strict=True), strict=True)}

SPREAD = 0.4  # of the place that a number of observers has, that the peers stand beside each other in


def formats() -> Iterable[str]:
    """Gives the suffixes of what can be drawn, without the dot.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingExtra("bench", "a plot") from error
    return FigureCanvasBase.get_supported_filetypes()


def draw(rows: Sequence[Figures], suffix: str, versions: dict[str, str]) -> bytes:
    """Draws figures, as a file of that suffix.

    Above, how many publishes a second; below, the time until all observers have acknowledged: a marker at the median
    of the publishes, and a line up to the 99th percentile.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text in an SVG, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rxbus", "font.size": 9.5}):
        topics = sorted({row.topics for row in rows})
        figure = Figure(figsize=(2.6 + 4.2 * len(topics), 7), layout="constrained")
        panels = figure.subplots(2, len(topics), sharex="col", sharey="row", squeeze=False)
        for column, number in enumerate(topics):
            own = [row for row in rows if row.topics == number]
            _rates(panels[0][column], own)
            _latencies(panels[1][column], own)
            panels[0][column].set_title(f"{number:,} topic{'s' * (number != 1)}", fontsize=11)
        panels[0][0].set_ylabel("publishes per second")
        panels[1][0].set_ylabel("µs until all observers have acknowledged\nmedian, and line to the 99th percentile")
        figure.supxlabel("observers of each topic", fontsize=9.5)
        _legend(figure, panels[0][0], versions)
        drawn = BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(drawn, format=suffix, dpi=160, metadata=metadata)
    return drawn.getvalue()


def _rates(panel: Axes, rows: Sequence[Figures]) -> None:
    _axes(panel, rows)
    for peer, places, own in _by_peer(rows):
        panel.plot(places, [row.per_second for row in own], **_look(peer))


def _latencies(panel: Axes, rows: Sequence[Figures]) -> None:
    _axes(panel, rows)
    for peer, places, own in _by_peer(rows):
        medians = [row.p50_us for row in own]
        above = [max(0.0, row.p99_us - row.p50_us) for row in own]
        look = _look(peer)
        panel.errorbar(places, medians, yerr=[[0.0] * len(own), above], elinewidth=1, capsize=2, **look)


def _axes(panel: Axes, rows: Sequence[Figures]) -> None:
    observers = sorted({row.observers for row in rows})
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    panel.set_xticks(range(len(observers)), [f"{number:,}" for number in observers])
    panel.set_xlim(-0.5, len(observers) - 0.5)
    panel.grid(axis="y", color="#dddddd", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _by_peer(rows: Sequence[Figures]) -> Iterable[tuple[str, list[float], list[Figures]]]:
    """Gives each peer's rows and where they stand: beside those of the others, so that no line hides another."""
    observers = sorted({row.observers for row in rows})
    peers = [peer for peer in LOOKS if any(row.peer == peer for row in rows)]
    for number, peer in enumerate(peers):
        own = sorted((row for row in rows if row.peer == peer), key=lambda row: row.observers)
        aside = SPREAD * ((number + 0.5) / len(peers) - 0.5)
        yield peer, [observers.index(row.observers) + aside for row in own], own


def _look(peer: str) -> dict[str, Any]:
    colour, marker = LOOKS[peer]
    front = peer == Rxbus.name
    return {
        "color": colour,
        "marker": marker,
        "markersize": 6.5 if front else 4.5,
        "linewidth": 2.4 if front else 1.1,
        "linestyle": ":" if peer == Loop.name else "-",
        "zorder": 4 if front else 3,
        "label": peer,
    }


def _legend(figure: Figure, panel: Axes, versions: dict[str, str]) -> None:
    handles, peers = panel.get_legend_handles_labels()
    labels = [f"{peer} {versions.get(peer, '')}".rstrip() for peer in peers]
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle("Publishing, beside the peers", fontsize=13, x=0.02, horizontalalignment="left")
