"""`landscape check`: what a file is, whether it can be measured, at what cost, and a second opinion."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import UntrustedResult

from . import options
from .options import CURVATURE
from .output import console, require_outputs, write_json
from .tables import escaped, fact_grid, forecast_table, how, plain_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from landscape.analyses.check import Check


@options.on_model
def check(
    about: options.ModelOptions,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            help="Eigenvalues of largest magnitude to compare.",
            rich_help_panel=CURVATURE,
        ),
    ] = 3,
    opinion: Annotated[
        bool,
        typer.Option(
            "--second-opinion/--no-second-opinion",
            help="Compare with PyHessian's eigenvalues.",
            rich_help_panel=CURVATURE,
        ),
    ] = True,
    iterations: Annotated[
        int,
        typer.Option(
            "--iterations",
            metavar="N",
            min=2,
            help="Power iterations of PyHessian per eigenvalue.",
            rich_help_panel=CURVATURE,
        ),
    ] = 12,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            help="Time for the comparison, roughly; a slow model is compared on fewer samples.",
            rich_help_panel=CURVATURE,
        ),
    ] = 60.0,
    json_file: options.Json = None,
) -> None:
    """What a model file is, what of it is measured, at what cost, and a second opinion.

    Tells the kind of file and what was read from it, the blocks of parameters, whether the loss is
    repeatable, which modules need special handling, how products are computed, what each command will
    cost on this machine, and the leading eigenvalues beside those of PyHessian. Exit code 3 when they
    disagree.

        landscape check model.pt

        landscape check checkpoint.ckpt --model my.net:build --data images/ --weights ema
    """
    from landscape.analyses.check import check as analyse

    from .progress import phases

    to_stdout = str(json_file) == "-"
    require_outputs(about.model, json_file)
    execution = about.execution()
    messages = console(stderr=True)
    problem = about.load(messages)
    screen = messages if to_stdout else console()
    with phases(messages) as progress:
        result = analyse(
            problem,
            top=min(top, problem.size) if top >= 1 else top,
            opinion=opinion,
            iterations=iterations,
            budget=budget,
            seed=about.seed,
            progress=progress,
            ready=lambda about: _show(screen, about),
            command=shlex.join(["landscape", *sys.argv[1:]]),
            **execution,
        )
    write_json(result.to_dict(), json_file)
    _show_opinion(screen, result)
    if result.failures:
        raise UntrustedResult("; ".join(result.failures))


def _show(screen: "Console", result: "Check") -> None:
    from landscape.numerals import count, number

    about, origin = result.problem, result.origin
    screen.print(f"[bold]{escaped(origin.get('file', 'model'))}[/bold]")
    facts = fact_grid()
    facts.add_row("file", escaped(origin.get("kind", "")))
    selected = sum(block.parameters for block in result.blocks)
    left_out = sum(block.left_out for block in result.blocks)
    rest = f", {left_out:,} left out" if left_out else ""
    facts.add_row(
        "model",
        f"{about['model']}, {selected:,} parameters{rest}, {about['dtype']} on {about['device']}",
    )
    facts.add_row("data", escaped(_data(about, origin)))
    facts.add_row(
        "loss",
        f"{about['loss']}: {result.loss:.6g} over {about['loss_terms']:,.10g} terms, gradient norm "
        f"{number(result.gradient_norm, 3)}",
    )
    same = (
        "two products agree to the last bit"
        if result.repeatable == 0
        else f"two products agree to {result.repeatable:.0e}"
    )
    facts.add_row("repeatable", same)
    if about["unused_parameters"]:
        unused = about["unused_parameters"]
        listed = ", ".join(unused[:3]) + (" …" if len(unused) > 3 else "")
        total = count(len(unused), "tensor")
        facts.add_row("unused", escaped(f"{total} the loss never uses: {listed}"))
    manner = how(result.provenance["plan"])
    facts.add_row("products", escaped(f"{result.engine}{manner and f' ({manner})'}: {result.why}"))
    screen.print(facts)
    screen.print()
    screen.print(_blocks(result))
    if result.special:
        screen.print()
        special = fact_grid()
        for i, (phrase, modules, names) in enumerate(result.special):
            more = f" … ({modules} in all)" if modules > len(names) else ""
            label = "special" if i == 0 else ""
            special.add_row(label, escaped(f"{phrase}: {', '.join(names)}{more}"))
        screen.print(special)
    screen.print()
    screen.print(forecast_table(result.forecasts))
    screen.print()


def _data(about: dict[str, Any], origin: dict[str, Any]) -> str:
    from landscape.numerals import count

    tensors = ", ".join(
        f"{name} {tuple(tensor['shape']) or ''} {tensor['dtype']}".replace("  ", " ")
        for name, tensor in about["tensors"].items()
    )
    classes = f", {about['classes']} classes seen" if about["classes"] else ""
    return (
        f"{origin.get('data', 'given in Python')}: {about['samples']:,} samples in "
        f"{count(about['batches'], 'batch', 'batches')}, a row of {tensors}{classes}; fingerprint {about['data_fingerprint'][:12]}"
    )


def _blocks(result: "Check") -> "Table":
    from landscape.numerals import count

    total = sum(block.parameters for block in result.blocks)
    table = plain_table("block", "kind", "tensors", "parameters", "share", "left out")
    table.columns[1].justify = "left"
    table.columns[0].overflow = "fold"
    shown = [block for block in result.blocks if block.parameters]
    others = [block for block in result.blocks if not block.parameters]
    for block in shown:
        table.add_row(
            escaped(block.name or "(the model itself)"),
            "" if block.kind == "Module" else block.kind,  # programs do not keep their classes
            f"{block.tensors}",
            f"{block.parameters:,}",
            f"{100 * block.parameters / total:.1f} %",
            f"{block.left_out:,}" if block.left_out else "",
        )
    if others:
        left = sum(block.left_out for block in others)
        table.add_row(f"{count(len(others), 'other block')}", "", "", "", "", f"{left:,}")
    return table


def _show_opinion(screen: "Console", result: "Check") -> None:
    from landscape.analyses.second_opinion import CONVERGED
    from landscape.numerals import number, with_error

    opinion = result.opinion
    asked = opinion is not None and opinion.unavailable is None
    columns = ["|λ| largest", "landscape", "PyHessian", "products differ by"]
    table = plain_table(*columns[: 4 if asked else 2])
    for i, (value, residual) in enumerate(zip(result.eigenvalues, result.residuals, strict=True)):
        row = [f"λ{i + 1}", with_error(value, residual)]
        if opinion is not None and asked:
            settled = opinion.residuals[i] <= CONVERGED * abs(result.eigenvalues[0])
            note = "" if settled else " [dim](unfinished)[/dim]"
            row += [
                with_error(opinion.values[i], opinion.residuals[i]) + note,
                f"{number(opinion.differences[i], 1)} of λ1",
            ]
        table.add_row(*row)
    screen.print(table)
    if result.compared_samples < result.problem["samples"]:
        screen.print(
            f"compared on the first {result.compared_samples:,} samples only, to take about as long as "
            "--budget says",
            style="dim",
        )
    if opinion is None:
        screen.print("no second opinion was asked for", style="dim")
    elif opinion.unavailable is not None:
        screen.print(f"no second opinion: {opinion.unavailable}", style="dim", markup=False)
    else:
        low, high = opinion.batch_weights
        if low != high or low != 1:
            screen.print(
                f"PyHessian weights batches by samples; corrected by factors from {low:.4g} to {high:.4g}",
                style="dim",
            )
    if result.failures:
        for failure in result.failures:
            screen.print(f"not trusted: {failure}", style="red", markup=False)
    elif asked:
        screen.print("both libraries agree", style="green")
