"""`landscape spectrum --per-layer`: spectrum, trace and leading eigenvalues of every part of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from landscape.errors import InputError

from .output import console, deliver, printable, require_outputs
from .remarks import describe_cost, describe_problem
from .tables import escaped, plain_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from landscape.analyses.layers import Layers

    from .options import ModelOptions

# Options of `landscape spectrum` that mean the same here; unless given, the defaults are those of `layers`.
SHARED = ("operator", "samples", "top", "probes", "steps", "tolerance", "max_steps")

WIDE, NARROW = 140, 100  # letters in a line of a file, and where there is no room for the kind


def parse_by(given: list[str] | None) -> str | list[str]:
    """What `--by` asks for: module, type, or globs, repeated or separated by commas.

    >>> parse_by(None), parse_by(["type"]), parse_by(["conv*,fc*", "bn*"])
    ('module', 'type', ['conv*', 'fc*', 'bn*'])
    """
    words = [word.strip() for text in given or ["module"] for word in text.split(",")]
    if words in (["module"], ["type"]):
        return words[0]
    if "" in words:
        raise InputError(f"--by {','.join(given or [])!r} holds an empty glob")
    return words


def per_layer(
    about: "ModelOptions",
    invocation: typer.Context,
    *,
    by: list[str] | None,
    output: Path | None,
    json_file: Path | None,
    command: str,
) -> None:
    """Measure every block, print a table, write the numbers and the figure."""
    from landscape.analyses.layers import layers
    from landscape.plots.writing import require_ending

    from .progress import phases

    if invocation.params["axis"] != "symlog":
        raise InputError("--per-layer draws on a symlog axis only: leave --axis out")
    model = about.model
    figure = output or model.with_name(f"{model.stem}.layers.pdf")
    require_ending(figure, page=True)
    written = require_outputs(model, figure, json_file)
    chosen: Any = {name: invocation.params[name] for name in SHARED if _given(invocation, name)}
    if chosen.get("steps") == "auto":
        raise InputError("--per-layer takes a number of --steps, not auto")
    groups = parse_by(by)
    execution = about.execution()
    messages = console(stderr=True)
    problem = about.load(messages)
    with phases(messages) as progress:
        result = layers(
            problem,
            by=groups,
            seed=about.seed,
            progress=progress,
            command=command,
            **chosen,
            **execution,
        )
    deliver(
        result,
        json_file,
        lambda screen: _show(screen, result, model),
        written=written,
        write=lambda: result.plot(figure),
    )


def _given(invocation: typer.Context, name: str) -> bool:
    source = invocation.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _show(screen: "Console", result: "Layers", model: Path) -> None:
    from rich.markup import escape

    from landscape.numerals import count, with_error

    screen.print(
        f"[bold]{result.operator}[/bold] of {escape(str(model))}, "
        f"{count(len(result.blocks), 'diagonal block')}"
    )
    screen.print(
        printable(describe_problem(result.provenance["problem"])), style="dim", markup=False
    )
    if not screen.is_terminal:  # nothing is folded where it goes to a file
        screen.width = max(screen.width, WIDE)
    screen.print(_table(result, narrow=screen.width < NARROW))
    trace = with_error(result.trace.value, result.trace.standard_error)
    screen.print(f"[dim]trace of all[/dim]  {trace}")
    screen.print(f"[dim]cost[/dim]  {', '.join(describe_cost(result.cost))}")


def _table(result: "Layers", *, narrow: bool) -> "Table":
    """One row per block; λ1 and λ min both lie within the residual of a true eigenvalue."""
    from landscape.numerals import number, with_error

    kind = [] if narrow else ["kind"]
    table = plain_table("block", *kind, "parameters", "trace", "share", "λ1", "λ min", "residual ≤")
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[: 1 + len(kind)]:
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    for block in result.blocks:
        share = block.trace.value / result.trace.value if result.trace.value else float("nan")
        trace = with_error(block.trace.value, block.trace.standard_error)
        pairs = [*block.eigenvalues, block.smallest_eigenvalue]
        converged = all(pair.converged for pair in pairs)
        residual = number(max(pair.residual for pair in pairs), 1)
        table.add_row(
            escaped(block.name),
            *([] if narrow else [escaped(", ".join(block.kinds))]),
            f"{block.parameters:,}",
            _dense(number(block.trace.value, 4) if block.exact else trace),
            f"{100 * share:.1f} %",
            _dense(number(block.eigenvalues[0].value, 4)),
            _dense(number(block.smallest_eigenvalue.value, 2)),
            _dense(residual) if converged else f"[red]{_dense(residual)}, not converged[/red]",
        )
    return table


def _dense(text: str) -> str:
    """A number without spaces around its power of ten, so that a row fits."""
    return text.replace(" × ", "×")
