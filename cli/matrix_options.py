"""Options that commands on a curvature matrix share."""

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import CURVATURE, EXECUTION

if TYPE_CHECKING:
    from landscape.analyses.sampling import Sampled, Sampling
    from landscape.results import Cost

Operator = Annotated[
    str,
    typer.Option(
        "--operator",
        help="hessian, gauss-newton, fisher, empirical-fisher or gradient-covariance.",
        rich_help_panel=CURVATURE,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        help="Targets drawn per loss term for the Fisher matrix. [default: exact]",
        rich_help_panel=CURVATURE,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max-steps",
        metavar="N",
        help="Products of the search for eigenvalues at most. [default: 1000, or 100 for each eigenvalue]",
        rich_help_panel=CURVATURE,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Keep the state there: after a kill the same command goes on, to the same bits. The file is "
        "removed at the end.",
        rich_help_panel=EXECUTION,
    ),
]


def command_line() -> str:
    """What was typed, for provenance."""
    return shlex.join(["landscape", *sys.argv[1:]])


def data_error(found: "Sampled", sampling: "Sampling") -> str:
    """The standard error that comes from the choice of samples; empty where it is unknown."""
    from landscape.numerals import number

    error = sampling.correction * found.standard_error
    return "" if math.isnan(error) else f"± {number(error)}"


def describe_sampling(sampling: "Sampling") -> tuple[str, str]:
    """What the data errors were found from, and what they are about."""
    from landscape.numerals import count

    kind = (
        ("random group", None)
        if sampling.at_random
        else ("batch as it comes", "batches as they come")
    )
    groups = count(sampling.groups, *kind)
    if sampling.groups < 2:
        return f"{sampling.samples:,} samples", "in one batch that cannot be cut: no data error"
    population = sampling.population
    whole = "their distribution" if population is None else f"all {population:,} samples"
    return f"{sampling.samples:,} samples in {groups}", f"data ± is about {whole}"


def describe_cost(cost: "Cost") -> tuple[str, str]:
    """Products and gradients; time and memory."""
    from landscape.numerals import duration, memory

    gradients = (
        ""
        if cost.gradient_equivalents is None
        else f" ≈ {cost.gradient_equivalents:,.0f} gradients"
    )
    return (
        f"{cost.products:,} products{gradients}",
        f"{duration(cost.seconds)}, peak {memory(cost.peak_bytes)}",
    )
