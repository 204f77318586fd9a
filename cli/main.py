"""The `landscape` command: one file per subcommand, and the exit codes of all of them."""

import sys
import traceback
from typing import Annotated, Any

import typer

from landscape import __version__
from landscape.errors import LandscapeError
from landscape.memory import is_out_of_memory

from . import (
    bench,
    check,
    compare,
    connect,
    demo,
    eigen,
    influence,
    prune,
    sharpness,
    spectrum,
    surface,
    trace,
)
from .output import one_line

INTERRUPTED = 130

app = typer.Typer(
    name="landscape",
    help="Curvature and loss landscapes of neural networks, with error bars.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("spectrum")(spectrum.spectrum)
app.command("eigen")(eigen.eigen)
app.command("trace")(trace.trace)
app.command("surface")(surface.command)
app.command("sharpness")(sharpness.sharpness)
app.command("influence")(influence.influence)
app.command("prune")(prune.prune)
app.command("connect")(connect.connect)
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"landscape {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Curvature and loss landscapes of neural networks, with error bars."""


def main() -> None:
    """Run the command line; never a traceback unless `--debug` is among the arguments.

    Exit codes: 0 done, 1 the machine failed or a bug, 2 wrong usage or input, 3 the result could not be
    trusted, 130 interrupted.
    """
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into a return value, in some versions
            raise KeyboardInterrupt
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        later = "; the same command goes on" if "--resume" in sys.argv else ""
        _stop(f"interrupted{later}", INTERRUPTED)
    except LandscapeError as error:
        _stop(str(error), error.exit_code)
    except OSError as error:
        _stop(f"{error.strerror or error}: {error.filename or 'while writing'}", 1)
    except Exception as error:  # noqa: BLE001 the last resort turns a traceback into a sentence
        if hasattr(error, "format_message"):  # wrong usage, as typer's own errors say it
            said = error.format_message()
            if not said:  # no command was given, and the help has been printed
                sys.exit(2)
            _stop(f"{said} (see landscape --help)", 2)
        _stop(_machine_failure(error), 1)


def _machine_failure(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    if is_out_of_memory(error):
        return f"out of memory ({text}): use fewer --probes, a smaller --batch-size, or --limit"
    return f"a bug: {type(error).__name__}: {text} (run again with --debug for the traceback)"


def _stop(sentence: str, code: int) -> Any:
    if "--debug" in sys.argv:
        traceback.print_exc()
    print(f"landscape: {one_line(sentence)}", file=sys.stderr)
    sys.exit(code)
