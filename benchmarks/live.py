"""What live views cost: `python -m benchmarks.live`. It takes about two minutes.

A thread offers 100,000 events a second. In short rounds that take turns, nobody watches, or a view does; what counts is
the ratio of the times that a publish takes: of their medians, and of their means, which the frames are a part of. Views
of notebooks are measured in a kernel, where what they send is really sent.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from statistics import fmean, median
from time import perf_counter

from rxbus import EventBus

OFFERED = 100_000  # events per second
SECONDS = 1.0  # of a round
ROUNDS = 15
TOPICS = [f"topic.{number}" for number in range(20)]


class Terminal(io.StringIO):
    """Stands for a terminal: takes what is drawn."""

    def isatty(self) -> bool:
        return True


def top(bus: EventBus) -> Callable[[], None]:
    return bus.top().stop


def top_in_a_terminal(bus: EventBus) -> Callable[[], None]:
    os.environ.update(TERM="xterm", COLUMNS="120", LINES="50")
    out, sys.stdout = sys.stdout, Terminal()
    view = bus.top()

    def stop() -> None:
        view.stop()
        sys.stdout = out

    return stop


def monitor(bus: EventBus) -> Callable[[], None]:
    return bus.monitor().stop


def one_round(bus: EventBus) -> tuple[float, float, float]:
    """Gives the median and the mean time of a publish, in seconds, and the events per second that came about."""
    publish, times = bus.publish, []
    begin = due = perf_counter()
    end = begin + SECONDS
    while due < end:
        now = perf_counter()
        if now < due:
            continue
        publish(TOPICS[len(times) % len(TOPICS)])
        times.append(perf_counter() - now)
        due += 1 / OFFERED
        if now > end:
            break
    return median(times), fmean(times), len(times) / (perf_counter() - begin)


def measure(*views: Callable[[EventBus], Callable[[], None]]) -> None:
    """Prints a line for each view."""
    with EventBus() as bus:
        for topic in TOPICS:
            bus.subscribe(topic).subscribe(lambda event: None)
        one_round(bus)  # not counted
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(ROUNDS):
            found.setdefault("nobody", []).append(one_round(bus))
            for view in views:
                stop = view(bus)
                found.setdefault(view.__name__, []).append(one_round(bus))
                stop()
    plain = [median(column) for column in zip(*found.pop("nobody"), strict=True)]
    print(f"| nobody watches | {plain[0] * 1e6:.2f} µs | {plain[1] * 1e6:.2f} µs | {plain[2]:,.0f}/s |")
    for name, rounds in found.items():
        p50, mean, rate = (median(column) for column in zip(*rounds, strict=True))
        ratios = f"{p50 / plain[0]:.2f} | {mean / plain[1]:.2f} | {rate / plain[2]:.2f}"
        print(f"| {name.replace('_', ' ')} | {ratios} |", flush=True)


def measure_in_a_kernel() -> None:
    import nbformat
    from nbclient import NotebookClient

    code = "from benchmarks.live import measure, monitor, top\nmeasure(top, monitor)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    print("".join(output.text for output in notebook.cells[0].outputs if output.output_type == "stream"), end="")


def main() -> None:
    print("| who watches | median of a publish | mean | events |\n|---|---|---|---|")
    measure(top_in_a_terminal)
    measure_in_a_kernel()


if __name__ == "__main__":
    main()
