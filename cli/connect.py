"""`landscape connect`: the loss between two trained models, on the straight line and on a trained path."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import matrix_options as matrix
from . import options, remarks
from .held_out import HeldOut, read_held_out
from .options import OUTPUT
from .output import console, deliver, require_outputs
from .parsing import parse_norm_stats

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.connectivity import Along, Barrier, Connectivity, Profile

PATH = "Path"


@options.on_model
def connect(
    about: options.ModelOptions,
    other: Annotated[
        Path, typer.Argument(help="The model at the other end, of the same architecture.")
    ],
    path: Annotated[
        str,
        typer.Option(
            "--path",
            metavar="linear|bezier|polygon",
            help="Beside the straight line: nothing, a Bézier curve, or a chain of straight pieces.",
            rich_help_panel=PATH,
        ),
    ] = "bezier",
    points: Annotated[
        int,
        typer.Option(
            "--points",
            metavar="N",
            help="Places on each path, both ends among them.",
            rich_help_panel=PATH,
        ),
    ] = 21,
    bends: Annotated[
        int,
        typer.Option(
            "--bends",
            metavar="N",
            help="Trained points between the ends.",
            rich_help_panel=PATH,
        ),
    ] = 1,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", metavar="N", help="Of training the bends by Adam.", rich_help_panel=PATH
        ),
    ] = 30,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate",
            help="Of that training at its beginning; it falls to 0.",
            rich_help_panel=PATH,
        ),
    ] = 0.01,
    held_out: HeldOut = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            metavar="FILE",
            help="Write bends and end of the path, less its beginning, a .pt file of tensors.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    middle: Annotated[
        Path | None,
        typer.Option(
            "--middle",
            metavar="FILE",
            help="Write the weights at t = 0.5 on the path, .safetensors.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FIGURE",
            help="Loss and accuracy over t, .pdf, .svg or .png. [default: MODEL.connectivity.pdf]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: options.Json = None,
) -> None:
    """The loss between two trained models of the same architecture: is there a path without a barrier?

    On the straight line, and on a path whose bends are trained on the data. Statistics of batch
    normalisation are estimated anew at every point, unless --norm-stats says otherwise.

        landscape connect a.pt b.pt
    """
    from landscape.analyses.connectivity import connectivity
    from landscape.plots.writing import require_ending

    from .progress import phases

    about.require_no_products("connecting models")
    figure = output or about.model.with_name(f"{about.model.stem}.connectivity.pdf")
    require_ending(figure)
    written = require_outputs(about.model, figure, vectors, middle, json_file)
    require_outputs(other, *written)
    messages = console(stderr=True)
    problem = about.load(messages)
    ending = about.open(other, messages)
    unseen = read_held_out(held_out, problem, about, messages)
    with phases(messages, unit="steps") as progress:
        result = connectivity(
            problem,
            ending,
            path,  # type: ignore[arg-type]
            points=points,
            bends=bends,
            epochs=epochs,
            learning_rate=learning_rate,
            norm_stats=parse_norm_stats(about.norm_stats),
            held_out=unseen,
            seed=about.seed,
            progress=progress,
            command=matrix.command_line(),
        )

    def write() -> None:
        if vectors is not None:
            result.save_vectors(vectors)
        if middle is not None:
            result.save_weights(middle)
        result.plot(figure)

    deliver(
        result,
        json_file,
        partial(_show, result=result, models=(about.model, other)),
        written=written,
        write=write,
    )


def _show(screen: "Console", result: "Connectivity", models: tuple[Path, Path]) -> None:
    """The barriers of every path, on every data, by both definitions."""
    from rich.markup import escape

    from landscape.numerals import duration, memory, number
    from landscape.plots.connectivity import NAMES

    from .output import printable
    from .tables import escaped, fact_grid, plain_table

    first, second = (escape(str(model)) for model in models)
    screen.print(f"[bold]Paths[/bold] from {first} to {second}")
    about = result.provenance["problem"] | {"norm_layers": 0}  # batch normalisation is told below
    screen.print(printable(remarks.describe_problem(about)), style="dim", markup=False)
    table = plain_table(
        "path", "data", "barrier\nover line", "barrier\nover ends", "at t", "accuracy"
    )
    ends = []
    for along in (result.linear, result.trained):
        name = "" if along is None else NAMES[along.path]
        for data, profile in _profiles(along):
            _row(table, name, data, profile)
            name = ""
            if along is result.linear:
                first_loss, last_loss = number(profile.loss[0]), number(profile.loss[-1])
                ends.append(f"{first_loss} and {last_loss} ({data})")
    screen.print(table)
    facts = fact_grid()
    facts.add_row("losses", "at the ends " + ", ".join(ends))
    lengths = f"{number(result.distance, 3)} apart"
    if result.trained is not None:
        lengths += f"; the {NAMES[result.path]} is {number(result.trained.length, 3)} long"
    facts.add_row("weights", lengths)
    if result.norm_stats is not None:
        facts.add_row("batch norm", f"{result.norm_stats} statistics at every point")
    for note in result.notes:
        facts.add_row("note", escaped(note))
    facts.add_row("cost", f"{duration(result.cost.seconds)}, peak {memory(result.cost.peak_bytes)}")
    screen.print(facts)


def _profiles(along: "Along | None") -> "list[tuple[str, Profile]]":
    """What was found on each kind of data."""
    if along is None:
        return []
    unseen = [] if along.held_out is None else [("held-out", along.held_out)]
    return [("training", along.train), *unseen]


def _row(table: Any, name: str, data: str, profile: "Profile") -> None:
    from landscape.numerals import number

    accuracy = profile.accuracy
    table.add_row(
        name,
        data,
        _height(profile.over_line),
        _height(profile.over_endpoints),
        number(profile.over_line.t),
        "" if accuracy is None else f"≥ {100 * min(accuracy):.1f} %",
    )


def _height(barrier: "Barrier") -> str:
    from landscape.numerals import with_error

    return with_error(barrier.height, barrier.standard_error)
