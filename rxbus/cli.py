"""The terminal: `rxbus demo`, which shows the bus at work on the machine's own life, and all other commands.

It needs the extra `cli` (typer, rich, psutil, hdrhistogram), and says so where that is missing.
"""

import sys
from collections.abc import Callable
from typing import Annotated

from rxbus import __version__
from rxbus.errors import MissingExtra

_EXTRA = ("typer", "rich", "psutil", "hdrh")


def main() -> None:
    """What `rxbus` and `python -m rxbus` run. It exits with 2 for what cannot be meant, and for a missing extra."""
    try:
        _application()()
    except MissingExtra as missing:
        print(f"rxbus: {missing}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # during the imports; later typer sees to it
        sys.exit(130)


def _application() -> Callable[[], object]:
    """Makes the application; here and not on import, since its declarations need typer.

    Raises:
        MissingExtra: A package of the extra is not installed.
    """
    try:
        import hdrh.histogram  # type: ignore[import-untyped]  # noqa: F401  # which is asked for later only
        import typer

        from rxbus import _demo
        from rxbus._bench.command import bench
        from rxbus._console import AsJson, check_seconds, told_errors
        from rxbus._recordings import replay, report
        from rxbus.pipeline import _terminal
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _EXTRA:
            raise MissingExtra("cli", "the terminal") from error
        raise

    # Where the reader of a pipe has gone, typer exits quietly, with 1.
    application = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    application.add_typer(_terminal.application, name="pipeline")

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"rxbus {__version__}")
            raise typer.Exit

    @application.callback()
    def rxbus(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        """An event bus on ReactiveX whose publish waits for every observer."""

    @application.command()
    def demo(
        seconds: Annotated[
            float | None, typer.Option(metavar="N", help="End after N seconds; without it, Ctrl-C ends the demo.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Watch the bus carry this machine's load, memory and process starts.

        Among the observers are a moving average, an alert, a deliberately slow one and one that fails now and then.
        """
        if seconds is not None:
            check_seconds(seconds)
        with told_errors():
            raise typer.Exit(_demo.run(seconds, as_json))

    for command in (bench, replay, report):
        application.command()(command)

    return application
