"""`landscape sharpness`: how sharp the loss is around a trained model, by many definitions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.errors import InputError

from . import matrix_options as matrix
from . import options, remarks
from .options import CURVATURE, MODEL
from .output import console, deliver, one_line, require_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.sharpness.battery import Sharpness
    from landscape.analyses.sharpness.measure import Measure


@options.on_model
def sharpness(
    about: options.ModelOptions,
    measures: Annotated[
        str | None,
        typer.Option(
            "--measures",
            metavar="FAMILY,…",
            help="gradient, spectral, worst, m, average, normalised, fisher-rao, pac-bayes, "
            "relative-flatness, critical, smoothness, surrogate, preconditioned. [default: all]",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    rho: Annotated[
        float,
        typer.Option(
            "--rho",
            help="Radius of perturbations, ℓ₂; those of ℓ∞ and the average are ρ/√P per weight.",
            rich_help_panel=CURVATURE,
        ),
    ] = 0.05,
    adaptive_rho: Annotated[
        float,
        typer.Option(
            "--adaptive-rho",
            help="The same for perturbations relative to every weight.",
            rich_help_panel=CURVATURE,
        ),
    ] = 0.5,
    m: Annotated[
        int,
        typer.Option("--m", help="Samples in a batch of m-sharpness.", rich_help_panel=CURVATURE),
    ] = 128,
    scaled: Annotated[
        str,
        typer.Option(
            "--scaled",
            metavar="all|matrices",
            help="Weights that adaptive measures perturb relative to their size; matrices leaves biases "
            "and normalisation parameters out.",
            rich_help_panel=CURVATURE,
        ),
    ] = "all",
    steps: Annotated[
        int,
        typer.Option("--steps", help="Gradients of every ascent.", rich_help_panel=CURVATURE),
    ] = 20,
    restarts: Annotated[
        int,
        typer.Option("--restarts", help="Starts of every ascent.", rich_help_panel=CURVATURE),
    ] = 2,
    draws: Annotated[
        int,
        typer.Option(
            "--draws",
            help="Random perturbations, of average and PAC-Bayes measures.",
            rich_help_panel=CURVATURE,
        ),
    ] = 20,
    probes: Annotated[
        int,
        typer.Option(
            "--probes",
            help="Of trace, Frobenius norm and relative flatness.",
            rich_help_panel=CURVATURE,
        ),
    ] = 30,
    optimizer: Annotated[
        Path | None,
        typer.Option(
            "--optimizer",
            metavar="FILE",
            help="Saved state_dict of the Adam or AdamW that trained the model, for preconditioned "
            "sharpness and the steps of critical sharpness and smoothness.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    resume: matrix.Resume = None,
    json_file: options.Json = None,
) -> None:
    """How sharp the loss is around a trained model, by every definition in use, in one table.

    Every row says its definition, radius ρ, batch m and scaling c, where its error comes from, and what it
    cost in products with the Hessian (Hv), gradients (∇) and losses (L) of all the data. No measure of sharpness predicts generalisation reliably; the table says so too.

        landscape sharpness model.pt --measures worst,average --rho 0.1
    """
    from landscape.analyses.sharpness.battery import sharpness as analyse
    from landscape.loading.optimizer import read_optimizer

    from .progress import phases

    if scaled not in ("all", "matrices"):
        raise InputError(f"--scaled is {scaled!r}: choose all or matrices")
    written = require_outputs(about.model, json_file)
    require_outputs(about.model, *written, resume)
    execution = about.execution()
    state = None if optimizer is None else read_optimizer(optimizer)
    messages = console(stderr=True)
    problem = about.load(messages)
    with phases(messages, unit="families") as progress:
        result = analyse(
            problem,
            measures=None if measures is None else [part.strip() for part in measures.split(",")],
            rho=rho,
            adaptive_rho=adaptive_rho,
            m=m,
            scaled=scaled,  # type: ignore[arg-type]
            steps=steps,
            restarts=restarts,
            draws=draws,
            probes=probes,
            optimizer=state,
            seed=about.seed,
            progress=lambda family, done, expected: progress("sharpness", done, expected),
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


def _show(screen: "Console", result: "Sharpness", model: Path) -> None:
    """The table, the layers, and how not to read it."""
    from rich.table import Table
    from rich.text import Text

    from landscape.numerals import number, with_error

    from .tables import escaped, fact_grid, plain_table

    remarks.show_heading(screen, "Sharpness", model, result.provenance["problem"])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("measure and definition", overflow="fold")
    table.add_column("value ± error of", no_wrap=True)
    table.add_column("at, cost", no_wrap=True)
    for row in result.measures:
        value = number(row.value, 5)
        if not math.isnan(row.standard_error):
            value = with_error(row.value, row.standard_error)
        radius = "" if row.rho is None else f"ρ {number(row.rho)}, "
        table.add_row(
            Text.assemble(row.name, "\n", (row.definition, "dim")),
            Text.assemble(value, "\n", (row.error_from, "dim")),
            Text.assemble(f"{radius}c {row.scaling}", "\n", (f"m {row.m:,}, {_cost(row)}", "dim")),
        )
    screen.print(table)
    if result.layers:
        layers = plain_table("relative flatness of", "value ± error")
        for layer in result.layers:
            layers.add_row(escaped(layer.name), with_error(layer.value, layer.standard_error))
        screen.print(layers)
    facts = fact_grid()
    notes = [f"{row.name}: {row.note}" for row in result.measures if row.family in _NOTED]
    for i, note in enumerate(notes):
        facts.add_row("" if i else "notes", escaped(note))
    for i, (name, reason) in enumerate(result.left_out.items()):
        facts.add_row("" if i else "left out", escaped(f"{name}: {reason}"))
    facts.add_row("cost", ", ".join(remarks.describe_cost(result.cost)))
    facts.add_row("beware", result.caution)
    screen.print(facts)


_NOTED = ("critical", "smoothness", "preconditioned", "relative-flatness")


def _cost(row: "Measure") -> str:
    """Products, gradients and forward passes over all the data, those that there were."""
    parts = {"Hv": row.cost.products, "∇": round(row.gradients), "L": round(row.losses)}
    return " + ".join(f"{count:,} {unit}" for unit, count in parts.items() if count) or "no more"
