"""`landscape spectrum`: eigenvalue density, leading eigenvalues and trace of a trained model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import InputError

from . import layers, options, remarks
from . import matrix_options as matrix
from .options import CURVATURE, OUTPUT
from .output import console, deliver, one_line, require_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.spectrum import Spectrum


def parse_steps(text: str) -> int:
    """The number of steps, or "auto".

    >>> parse_steps("50"), parse_steps("auto")
    (50, 'auto')
    """
    if text == "auto":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--steps is {text!r}: write a number, or auto") from error


@options.on_model
def spectrum(
    about: options.ModelOptions,
    operator: matrix.Operator = "hessian",
    samples: matrix.Samples = None,
    top: Annotated[
        int,
        typer.Option("--top", help="Number of leading eigenvalues.", rich_help_panel=CURVATURE),
    ] = 5,
    probes: Annotated[
        int,
        typer.Option(
            "--probes",
            help="Random probes for density and trace; the error falls as 1/√probes.",
            rich_help_panel=CURVATURE,
        ),
    ] = 10,
    steps: Annotated[
        int,
        typer.Option(
            "--steps",
            metavar="N|auto",
            parser=parse_steps,
            help="Lanczos steps per probe: resolution; auto: until more would change the density by less than "
            "2 %.",
            rich_help_panel=CURVATURE,
        ),
    ] = 50,
    tolerance: matrix.EigenvalueTolerance = 1e-4,
    max_steps: matrix.MaxSteps = None,
    resume: matrix.Resume = None,
    data_tolerance: Annotated[
        float | None,
        typer.Option(
            "--data-tolerance",
            metavar="SHARE",
            help="With --limit auto: accepted standard error of λ₁ and trace, as a share, from the choice "
            "of samples and over probes. [default: 0.05]",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    axis: Annotated[
        str,
        typer.Option(
            "--axis",
            metavar="linear|symlog",
            help="Eigenvalue axis of the figure.",
            rich_help_panel=OUTPUT,
        ),
    ] = "symlog",
    output: Annotated[
        Path | None,
        options.figure(
            "Figure: .pdf, .png, .svg, or .html for an interactive page. [default: MODEL.spectrum.pdf]"
        ),
    ] = None,
    json_file: options.Json = None,
    per_layer: Annotated[
        bool,
        typer.Option(
            "--per-layer",
            help="A spectrum for every part of the model, a table and a figure. Unless given, 3 leading "
            "eigenvalues, 5 probes, 30 steps and a tolerance of 10⁻³ per part.",
            rich_help_panel=CURVATURE,
        ),
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="module|type|GLOB,GLOB…",
            help="What a part is, with --per-layer: a module, a type of module, or what a glob matches. "
            "[default: module]",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    *,
    invocation: typer.Context,
) -> None:
    """Eigenvalue density, leading eigenvalues and trace of a trained model's curvature.

    Every number comes with its error: eigenvalues with their residual, trace and density with their
    standard error over probes; and, as "data", with the standard error that comes from having measured on
    these samples. Exit code 3 when an eigenvalue did not converge, or one may be missing, or --limit auto
    did not reach its tolerance; the results are written all the same.

        landscape demo -o model.pt && landscape spectrum model.pt

        landscape spectrum weights.pt --model my.net:build --data my.data:train --loss cross_entropy
    """
    from landscape.analyses.growth import spectrum_on_enough_data
    from landscape.analyses.spectrum import spectrum as analyse
    from landscape.plots.spectrum_picture import check_axis
    from landscape.plots.writing import require_ending

    from .progress import phases

    if per_layer:
        if resume is not None:
            raise InputError("--resume does not go with --per-layer: leave one of them out")
        if about.limit == "auto" or data_tolerance is not None:
            raise InputError("--per-layer needs a fixed number of samples: say --limit N")
        layers.per_layer(
            about,
            invocation,
            by=by,
            output=output,
            json_file=json_file,
            command=matrix.command_line(),
        )
        return
    if by is not None:
        raise InputError("--by says what a part is: it only goes with --per-layer")
    model = about.model
    figure = output or model.with_name(f"{model.stem}.spectrum.pdf")
    require_ending(figure, page=True)
    check_axis(axis)
    written = require_outputs(model, figure, json_file)
    require_outputs(model, *written, resume)
    execution = about.execution()
    messages = console(stderr=True)
    given: dict[str, Any] = {}
    if resume is not None and about.limit == "auto":
        raise InputError("--resume needs a fixed number of samples: say --limit N")
    if grows := about.limit == "auto":
        about = replace(about, limit="0")
        given["data_tolerance"] = 0.05 if data_tolerance is None else data_tolerance
    elif data_tolerance is not None:
        raise InputError(
            "--data-tolerance says when --limit auto has enough: add that, or leave it out"
        )
    problem = about.load(messages)
    with phases(messages) as progress:
        result = (spectrum_on_enough_data if grows else analyse)(
            problem,
            operator=operator,
            top=top,
            probes=probes,
            steps=steps,
            tolerance=tolerance,
            max_steps=max_steps,
            samples=samples,
            seed=about.seed,
            progress=progress,
            command=matrix.command_line(),
            resume=resume,
            say=lambda sentence: messages.print(one_line(sentence), markup=False),
            **given,
            **execution,
        )
    deliver(
        result,
        json_file,
        lambda screen: _show(screen, result, model),
        written=written,
        write=lambda: result.plot(figure, axis=axis),
        resume=resume,
    )


def _show(screen: "Console", result: "Spectrum", model: Path) -> None:
    """The result as a compact table."""
    from rich.table import Table

    from landscape.numerals import count, number, with_error

    remarks.show_heading(screen, result.operator, model, result.provenance["problem"])
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    data = _data_errors(result)
    gradient = f"gradient norm {number(result.gradient_norm or 0.0, 3)}"
    table.add_row("loss", f"{result.loss:.6g}", _listed(data.get("loss"), gradient))
    pairs = [(f"λ{i + 1}", pair) for i, pair in enumerate(result.eigenvalues)]
    if result.parameters > len(pairs):
        pairs.append(("λ min", result.smallest_eigenvalue))
    for name, pair in pairs:
        note = None if pair.converged else "[red]not converged[/red]"
        table.add_row(name, with_error(pair.value, pair.residual), _listed(data.get(name), note))
    arguments = result.provenance["arguments"]
    table.add_row(
        "trace",
        with_error(result.trace.value, result.trace.standard_error),
        _listed(data.get("trace"), f"over {arguments['probes']} probes"),
    )
    mass, energy = result.negative_mass, result.negative_energy
    table.add_row(
        "negative",
        f"{with_error(100 * energy.value, 100 * energy.standard_error)} % of Σ|λ|",
        f"{number(100 * mass.lower)} to {number(100 * mass.upper)} % of the eigenvalues",
    )
    if result.functionals is not None and result.criteria is not None:
        sums, criteria = result.functionals, result.criteria
        for name, found, meaning in (
            (
                "dimension",
                sums.effective_dimension,
                f"effective: Σ λ/(λ+α), α = {number(sums.damping, 3)}",
            ),
            ("stable rank", sums.stable_rank, "‖A‖²_F / ‖A‖²"),
        ):
            error = found.standard_error + found.quadrature_error
            table.add_row(name, with_error(found.value, error), meaning)
        # K_H is a number of the run as much as of the matrix.
        basis = ", a basis" if criteria.reorthogonalize else ""
        table.add_row(
            f"r_e, K_H{criteria.n:g}",
            f"{number(criteria.r_e, 3)}, {number(criteria.K_Hn, 3)}",
            f"at {count(criteria.probes, 'probe')} × {count(criteria.steps, 'step')}, "
            f"{criteria.deflated} deflated{basis}",
        )
    if result.sampling is not None:
        table.add_row("data", *remarks.describe_sampling(result.sampling))
    table.add_row("cost", *remarks.describe_cost(result.cost))
    screen.print(table)


def _listed(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _data_errors(result: "Spectrum") -> dict[str, str]:
    """By the name of its row, the standard error of a number that comes from the choice of samples."""
    sampling = result.sampling
    if sampling is None:
        return {}
    names = [f"λ{i + 1}" for i in range(len(result.eigenvalues))] + ["λ min"]
    rows = dict(zip(names, sampling.eigenvalues, strict=False))  # no λ min where λ1 … are all
    rows |= {"trace": sampling.trace, "loss": sampling.loss}
    errors = {name: remarks.data_error(found, sampling) for name, found in rows.items()}
    return {name: f"data {error}" for name, error in errors.items() if error}
