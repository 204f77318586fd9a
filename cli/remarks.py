"""What the result of every measurement tells beside its numbers: of what, how sure, at what cost."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import printable

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.sampling import Sampling
    from landscape.results import Cost, Measured


def show_heading(screen: "Console", operator: str, model: Path, about: dict[str, Any]) -> None:
    """The matrix, the file, and the summary of the problem."""
    from rich.markup import escape

    screen.print(f"[bold]{operator}[/bold] of {escape(str(model))}")
    screen.print(printable(describe_problem(about)), style="dim", markup=False)


def describe_problem(about: dict[str, Any]) -> str:
    """What was measured, in two lines, or three where parameters are unused."""
    terms = (
        "" if about["loss_terms"] == about["samples"] else f" ({about['loss_terms']:,.10g} terms)"
    )
    norm = f", {about['norm_stats']} batch-norm statistics" if about["norm_layers"] else ""
    lines = [
        (
            f"{about['model']}, {about['parameters']:,} parameters in {about['dtype']} on "
            f"{about['device']}{norm}"
        ),
        f"{about['loss']} over {about['samples']:,} samples{terms}",
    ]
    unused = about["unused_parameters"]
    if unused:
        listed = ", ".join(unused[:3]) + (" …" if len(unused) > 3 else "")
        lines.append(
            f"{len(unused)} parameter tensor(s) the loss never uses, zero curvature: {listed}"
        )
    return "\n".join(lines)


def data_error(found: "Measured", sampling: "Sampling") -> str:
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
