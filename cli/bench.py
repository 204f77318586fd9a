"""`landscape bench`: how fast every engine multiplies, on the user's own model and machine."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.errors import InputError

from . import options
from .options import CURVATURE
from .output import console, require_outputs, write_json
from .tables import escaped, forecast_table, how, plain_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from landscape.analyses.bench import Bench, Row


@options.on_model
def bench(
    about: options.ModelOptions,
    operators: Annotated[
        str,
        typer.Option(
            "--operators",
            metavar="NAME,…",
            help="Matrices to multiply by, as for spectrum --operator.",
            rich_help_panel=CURVATURE,
        ),
    ] = "hessian,gauss-newton,fisher,empirical-fisher",
    vectors: Annotated[
        int, typer.Option("--vectors", help="Columns of the block.", rich_help_panel=CURVATURE)
    ] = 8,
    rounds: Annotated[
        int,
        typer.Option("--rounds", help="Timings that count, of each.", rich_help_panel=CURVATURE),
    ] = 5,
    json_file: options.Json = None,
) -> None:
    """How fast every engine multiplies by the curvature of your model, here.

    Products with a block of vectors, in turns with gradients over the same batches: a product costs so
    many gradients, as a median with its quartiles. What an engine cannot do stands below the table with
    the reason. --memory is that of each operator by itself, --engine times one engine alone, and --compile
    adds compiled products. `landscape spectrum --plan` computes as the fastest one did.

        landscape bench model.pt

        landscape bench model.pt --operators hessian,fisher --compile --json bench.json
    """
    from landscape.analyses.bench import bench as analyse

    from .progress import phases

    to_stdout = str(json_file) == "-"
    require_outputs(about.model, json_file)
    if about.plan is not None:
        raise InputError("bench finds the fastest plan by itself: leave --plan out")
    execution = about.execution()
    messages = console(stderr=True)
    problem = about.load(messages)
    with phases(messages) as progress:
        result = analyse(
            problem,
            operators=[name.strip() for name in operators.split(",")],
            vectors=vectors,
            rounds=rounds,
            seed=about.seed,
            progress=progress,
            command=shlex.join(["landscape", *sys.argv[1:]]),
            **execution,
        )
    write_json(result.to_dict(), json_file)
    _show(messages if to_stdout else console(), result, str(about.model))


def _show(screen: "Console", result: "Bench", model: str) -> None:
    from landscape.numerals import count

    about = result.provenance["problem"]
    screen.print(f"[bold]{escaped(model)}[/bold]")
    screen.print(
        f"{about['model']}, {count(about['parameters'], 'parameter')} in {about['dtype']} on "
        f"{about['device']}, {count(result.provenance['threads'], 'thread')}; "
        f"{about['samples']:,} samples in {count(about['batches'], 'batch', 'batches')}; "
        f"{count(result.vectors, 'vector')} at a time, {count(result.rounds, 'round')}",
        style="dim",
        markup=False,
    )
    screen.print()
    screen.print(_engines(result, screen.width < 90))
    reasons = dict.fromkeys((row.matrix, row.reason) for row in result.rows if row.reason)
    if reasons:
        screen.print()
    for matrix, reason in reasons:
        engines = [
            row.engine for row in result.rows if (row.matrix, row.reason) == (matrix, reason)
        ]
        named = (
            matrix if len(engines) == _ways(result, matrix) else f"{matrix}, {'; '.join(engines)}"
        )
        screen.print(f"no {named}: {escaped(reason)}", style="dim")
    if result.forecasts:
        screen.print()
        screen.print(forecast_table(result.forecasts))


def _ways(result: "Bench", matrix: str) -> int:
    return sum(row.matrix == matrix for row in result.rows)


def _engines(result: "Bench", narrow: bool) -> "Table":
    """One row per matrix and engine, the fastest of each matrix in bold."""
    table = plain_table("", "gradients\nper product", "time", "set-up", "memory", "")
    table.padding = (0, 1 if narrow else 2, 0, 0)
    table.columns[0].no_wrap = True
    table.columns[-1].justify = "left"
    for i, matrix in enumerate(dict.fromkeys(row.matrix for row in result.rows)):
        if i:
            table.add_row()
        table.add_row(matrix, style="cyan")
        for row in result.rows:
            if row.matrix == matrix:
                style = "bold" if row == result.fastest(matrix) else None
                table.add_row(*_cells(row), style=style)
    return table


def _cells(row: "Row") -> list[str]:
    from landscape.numerals import duration, memory

    if row.gradients is None or row.plan is None:
        return [row.engine, "–"]
    gradients = row.gradients
    return [
        row.engine,
        f"{gradients.median:.2f} ({gradients.lower:.2f}–{gradients.upper:.2f})",
        duration(row.seconds_per_product or 0.0),
        duration(row.setup_seconds or 0.0),
        "" if row.peak_bytes is None else memory(row.peak_bytes),
        how(row.plan),
    ]
