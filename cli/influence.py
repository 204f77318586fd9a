"""`landscape influence`: the training samples that help or harm a trained model most on some queries."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.errors import InputError

from . import matrix_options as matrix
from . import options, remarks
from .options import CURVATURE, MODEL, OUTPUT
from .output import console, deliver, require_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.influence import Influence


def parse_query(text: str) -> list[int]:
    """The positions that `--query` lists.

    >>> parse_query("0,5, 17")
    [0, 5, 17]
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(
            f"--query {text!r} is no list of samples: write positions such as 0,5,17, counted from 0"
        )
    return [int(word) for word in words]


@options.on_model
def influence(
    about: options.ModelOptions,
    query: Annotated[
        str,
        typer.Option(
            "--query",
            metavar="N,N,…",
            help="Positions of the samples asked about, counted from 0, in --query-data or else --data.",
            rich_help_panel=MODEL,
        ),
    ],
    query_data: Annotated[
        str | None,
        typer.Option(
            "--query-data",
            metavar="NAME|FILE|…",
            help="Where the queries are, such as digits:test; named like --data. [default: the training data]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    operator: Annotated[
        str,
        typer.Option(
            "--operator",
            help="gauss-newton, hessian, fisher or empirical-fisher; inverse-fisher: that of --rank samples, "
            "inverted exactly.",
            rich_help_panel=CURVATURE,
        ),
    ] = "gauss-newton",
    samples: matrix.Samples = None,
    damping: Annotated[
        float,
        typer.Option(
            "--damping",
            help="Added to the matrix: the coefficient λ of an L2 penalty ½λ‖θ‖² in training, or more for a "
            "network that is not at its optimum.",
            rich_help_panel=CURVATURE,
        ),
    ] = 1e-3,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="auto|cg|minres|nystrom|neumann|lissa|mfac",
            help="How the linear systems are solved; auto: CG, or MINRES where curvature is negative.",
            rich_help_panel=CURVATURE,
        ),
    ] = "auto",
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="N",
            help="Of the preconditioner of nystrom [default: 50]; gradients of mfac and inverse-fisher "
            "[default: 256].",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            help="Accepted residual of a linear system, as a share of its right-hand side.",
            rich_help_panel=CURVATURE,
        ),
    ] = 1e-4,
    max_iterations: Annotated[
        int,
        typer.Option(
            "--max-iterations", help="Products for a query at most.", rich_help_panel=CURVATURE
        ),
    ] = 1000,
    top: Annotated[
        int,
        typer.Option("--top", min=1, help="Samples shown on each side.", rich_help_panel=OUTPUT),
    ] = 5,
    output: Annotated[
        Path | None,
        options.figure("Figure: .pdf, .png or .svg. [default: MODEL.influence.pdf]"),
    ] = None,
    json_file: options.Json = None,
) -> None:
    """Which training samples raise or lower a trained model's loss on the samples of a query?

    For every training sample the change of the query's loss, to first order, if it were left out and the
    model trained anew: the most helpful samples are those without which it would rise. The data of the
    model must be those that it was trained on; all of them are used, also of an archive that is measured on
    a part. Exit code 3 when a linear system was not solved, or the
    damped matrix has negative curvature; the results are written all the same.

        landscape influence model.pt --query 0,5,17 --query-data digits:test
    """
    from landscape.analyses.influence import influence as analyse
    from landscape.estimators.solve import METHODS
    from landscape.plots.influence import require_room
    from landscape.plots.writing import require_ending

    from .progress import phases

    if method not in METHODS:
        raise InputError(f"--method is {method!r}: choose one of {', '.join(METHODS)}")
    queries = parse_query(query)
    require_room(len(queries), top)
    if about.limit not in (None, "0"):
        raise InputError(
            "--limit takes a random part of the data, in which positions are others, and leaving out is "
            "about all the data that the model was trained on: leave --limit out"
        )
    about = replace(about, limit="0")  # also of an archive that is measured on a part
    model = about.model
    figure = output or model.with_name(f"{model.stem}.influence.pdf")
    require_ending(figure)
    written = require_outputs(model, figure, json_file)
    execution = about.execution()
    messages = console(stderr=True)

    problem = about.load(messages)
    data = None if query_data is None else about.read(query_data, messages)
    with phases(messages, unit="steps") as progress:
        result = analyse(
            problem,
            queries,
            data=data,
            operator=operator,
            samples=samples,
            damping=damping,
            method=method,  # type: ignore[arg-type]
            rank=rank,
            tolerance=tolerance,
            max_iterations=max_iterations,
            seed=about.seed,
            progress=progress,
            command=matrix.command_line(),
            **execution,
        )
    deliver(
        result,
        json_file,
        lambda screen: _show(screen, result, model, query_data, top),
        written=written,
        write=lambda: result.plot(figure, top=top),
    )


def _show(
    screen: "Console", result: "Influence", model: Path, query_data: str | None, top: int
) -> None:
    """The strongest samples of every query, side by side."""
    from landscape.numerals import number

    from .tables import escaped, fact_grid, plain_table

    remarks.show_heading(screen, result.operator, model, result.provenance["problem"])
    where = "training sample" if query_data is None else f"sample of {escaped(query_data)}"
    for query in result.queries:
        of = "" if query.target is None else f", class {query.target}"
        screen.print(
            f"\n[bold]query {query.position}[/bold], {where}{of}: loss {number(query.loss, 3)}"
        )
        sides = ("helps", "harms")
        kind = [] if result.targets is None else ["class"]
        table = plain_table(*(name for side in sides for name in (side, *kind, "change")))
        columns = [query.most_helpful(top), query.most_harmful(top)]
        for i in range(max(map(len, columns))):
            row: list[str] = []
            for side in columns:
                if i >= len(side):
                    row += [""] * (2 + len(kind))
                    continue
                label = [] if result.targets is None else [f"{result.targets[side[i]]}"]
                change = number(query.effects[side[i]], 3)
                row += [f"{side[i]}", *label, change if change.startswith("−") else f"+{change}"]
            table.add_row(*row)
        screen.print(table)
    screen.print()
    facts = fact_grid()
    facts.add_row("change", "of the query's loss if the training sample were left out, first order")
    facts.add_row(
        "damping", f"{number(result.damping, 3)}, as an L2 penalty ½λ‖θ‖² in training would be"
    )
    worst = max(query.residual for query in result.queries)
    steps = max(query.iterations for query in result.queries)
    solved = f"residuals ≤ {number(worst)} after at most {steps} iterations" if steps else "exact"
    facts.add_row("solver", f"{result.method}, {solved}")
    facts.add_row("gradient", f"norm {number(result.gradient_norm)} where the model is")
    facts.add_row("cost", ", ".join(remarks.describe_cost(result.cost)))
    screen.print(facts)
