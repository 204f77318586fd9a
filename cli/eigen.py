"""`landscape eigen`: extreme eigenvalues and eigenvectors of a trained model's curvature."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.errors import InputError

from . import matrix_options as matrix
from . import options, remarks
from .options import CURVATURE, OUTPUT
from .output import console, deliver, one_line, require_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.eigen import Eigen


@options.on_model
def eigen(
    about: options.ModelOptions,
    operator: matrix.Operator = "hessian",
    samples: matrix.Samples = None,
    top: Annotated[
        int, typer.Option("--top", help="Number of eigenvalues.", rich_help_panel=CURVATURE)
    ] = 5,
    which: Annotated[
        str,
        typer.Option(
            "--which",
            metavar="largest|smallest|magnitude|both",
            help="Which end of the spectrum; smallest is the most negative.",
            rich_help_panel=CURVATURE,
        ),
    ] = "largest",
    tolerance: matrix.EigenvalueTolerance = 1e-4,
    basis: Annotated[
        int | None,
        typer.Option(
            "--basis",
            metavar="N",
            help="Vectors of the size of the model in memory. [default: 2 × top + 8, at least 20, more for small models]",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    block: Annotated[
        int,
        typer.Option(
            "--block", help="Vectors multiplied at once; helps clusters.", rich_help_panel=CURVATURE
        ),
    ] = 1,
    max_steps: matrix.MaxSteps = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            metavar="FILE",
            help="Begin near vectors that --vectors wrote, such as of an earlier epoch.",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Search the rest of the space for eigenvalues that are missing.",
            rich_help_panel=CURVATURE,
        ),
    ] = True,
    resume: matrix.Resume = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            metavar="FILE",
            help="Write the eigenvectors, a .pt file of tensors.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: options.Json = None,
) -> None:
    """Extreme eigenvalues and eigenvectors of a trained model's curvature.

    Each comes with its residual, in which a true eigenvalue lies; with a bound of the error of its vector;
    and, as "data", with the standard error that comes from having measured on these samples. A search in
    the rest of the space makes sure that none is missing. Exit code 3 when something is not certain; the
    results are written all the same.

        landscape eigen model.pt --top 10 --vectors directions.pt
    """
    from landscape.analyses.eigen import eigen as analyse
    from landscape.analyses.eigen import read_vectors

    from .progress import phases

    if which not in ("largest", "smallest", "magnitude", "both"):
        raise InputError(f"--which is {which!r}: choose largest, smallest, magnitude or both")
    written = require_outputs(about.model, vectors, json_file)
    require_outputs(about.model, *written, resume)
    execution = about.execution()
    beginning = None if start is None else read_vectors(start)
    messages = console(stderr=True)
    problem = about.load(messages)
    with phases(messages) as progress:
        result = analyse(
            problem,
            top,
            which=which,  # type: ignore[arg-type]
            operator=operator,
            samples=samples,
            tolerance=tolerance,
            basis=basis,
            block=block,
            max_steps=max_steps,
            start=beginning,
            verify=verify,
            seed=about.seed,
            progress=progress,
            command=matrix.command_line(),
            resume=resume,
            say=lambda sentence: messages.print(one_line(sentence), markup=False),
            **execution,
        )
    deliver(
        result,
        json_file,
        lambda screen: _show(screen, result, about.model),
        written=written,
        write=None if vectors is None else lambda: result.save_vectors(vectors),
        resume=resume,
    )


def _show(screen: "Console", result: "Eigen", model: Path) -> None:
    """The result as a compact table."""
    from landscape.numerals import number, with_error

    from .tables import fact_grid, plain_table

    remarks.show_heading(screen, result.operator, model, result.provenance["problem"])
    table = plain_table("", "eigenvalue ± residual", "data", "vector off by at most", "")
    sampling = result.sampling
    for i, pair in enumerate(result.eigenvalues):
        data = ""
        if sampling is not None:
            data = remarks.data_error(sampling.eigenvalues[i], sampling)
        table.add_row(
            f"{i + 1}",
            with_error(pair.value, pair.residual),
            data,
            f"{number(math.asin(pair.vector_error))} rad" if pair.vector_error < 1 else "unknown",
            "" if pair.converged else "[red]not converged[/red]",
        )
    screen.print(table)
    facts = fact_grid()
    if result.complete:
        certain = "none is missing"
        if 0 < result.missing < 1:
            certain += f", but for a chance of at most {number(result.missing, 1)}"
    else:
        certain = "[red]others may be missing[/red]"
        if not result.provenance["arguments"]["verify"]:
            certain = "others may be missing: the rest of the space was not searched"
    facts.add_row("complete", certain)
    if sampling is not None:
        facts.add_row("data", ", ".join(remarks.describe_sampling(sampling)))
    facts.add_row("cost", ", ".join(remarks.describe_cost(result.cost)))
    screen.print(facts)
