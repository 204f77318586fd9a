"""`landscape trace`: the trace of a trained model's curvature, to a tolerance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.errors import InputError

from . import matrix_options as matrix
from . import options, remarks
from .options import CURVATURE
from .output import console, deliver, one_line, require_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.trace import Trace


@options.on_model
def trace(
    about: options.ModelOptions,
    operator: matrix.Operator = "hessian",
    samples: matrix.Samples = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            help="Standard error wanted, as a share of the trace.",
            rich_help_panel=CURVATURE,
        ),
    ] = 0.01,
    confidence: Annotated[
        float,
        typer.Option("--confidence", help="Of the interval.", rich_help_panel=CURVATURE),
    ] = 0.95,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="auto|hutchinson|hutch++|xtrace",
            help="How it is estimated; auto: what a pilot finds the cheapest.",
            rich_help_panel=CURVATURE,
        ),
    ] = "auto",
    probes: Annotated[
        int,
        typer.Option("--probes", help="Products of the pilot.", rich_help_panel=CURVATURE),
    ] = 30,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            metavar="N",
            help="Products at most. [default: 10000]",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    resume: matrix.Resume = None,
    json_file: options.Json = None,
) -> None:
    """The trace of a trained model's curvature, to a tolerance.

    It comes with its standard error and a confidence interval over random probes, and, as "data", with the
    standard error that comes from having measured on these samples. Exit code 3 when the tolerance was not
    reached within the budget; the result is written all the same.

        landscape trace model.pt --tolerance 0.005
    """
    from landscape.analyses.trace import trace_of

    from .progress import phases

    if method not in ("auto", "hutchinson", "hutch++", "xtrace"):
        raise InputError(f"--method is {method!r}: choose auto, hutchinson, hutch++ or xtrace")
    written = require_outputs(about.model, json_file)
    require_outputs(about.model, *written, resume)
    execution = about.execution()
    messages = console(stderr=True)
    problem = about.load(messages)
    with phases(messages) as progress:
        result = trace_of(
            problem,
            operator=operator,
            samples=samples,
            method=method,  # type: ignore[arg-type]
            probes=probes,
            tolerance=tolerance,
            confidence=confidence,
            budget=budget,
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
        resume=resume,
    )


def _show(screen: "Console", result: "Trace", model: Path) -> None:
    """The result as a few lines."""
    from landscape.numerals import count, number, with_error

    from .tables import fact_grid

    found, sampling = result.estimate, result.sampling
    remarks.show_heading(screen, result.operator, model, result.provenance["problem"])
    facts = fact_grid()
    share = abs(found.standard_error / found.value) if found.value else 0.0
    error = "an indicator" if found.indicator else f"standard error {number(100 * share)} %"
    facts.add_row("trace", f"{with_error(found.value, found.standard_error)}, {error}")
    if found.lower is not None and found.upper is not None:
        interval = f"{number(found.lower, 6)} to {number(found.upper, 6)}"
        facts.add_row("interval", f"{interval}, with {100 * found.confidence:g} % confidence")
    if sampling is not None:
        groups, meaning = remarks.describe_sampling(sampling)
        data = remarks.data_error(sampling.trace, sampling)
        facts.add_row("data", ", ".join(part for part in (data, groups, meaning) if part))
    facts.add_row("method", f"{found.method}, {count(found.probes, 'probe')}")
    facts.add_row("cost", ", ".join(remarks.describe_cost(result.cost)))
    screen.print(facts)
