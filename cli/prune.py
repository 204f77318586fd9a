"""`landscape prune`: remove most weights of a trained model at the least rise of its loss."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import InputError

from . import matrix_options as matrix
from . import options
from .held_out import HeldOut, read_held_out
from .options import OUTPUT
from .output import console, deliver, require_outputs

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.analyses.pruning import Pruning
    from landscape.analyses.quality import Quality

PRUNING = "Pruning"


@options.on_model
def prune(
    about: options.ModelOptions,
    sparsity: Annotated[
        str | None,
        typer.Option(
            "--sparsity",
            metavar="SHARE[,SHARE…]",
            help="Of the weights to remove, such as 0.9; several are reached one after the other.",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="mfac|magnitude|diagonal",
            help="Saliency by the inverse Fisher matrix, with the exact update of what is left; |w|; or w² "
            "times the diagonal of the Fisher matrix.",
            rich_help_panel=PRUNING,
        ),
    ] = "mfac",
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="one-shot|gradual",
            help="Without training, or with some after every step.",
            rich_help_panel=PRUNING,
        ),
    ] = "one-shot",
    recompute: Annotated[
        int,
        typer.Option(
            "--recompute",
            metavar="N",
            help="Steps to each sparsity; gradients are computed once in each.",
            rich_help_panel=PRUNING,
        ),
    ] = 16,
    scope: Annotated[
        str,
        typer.Option(
            "--scope",
            metavar="global|layer",
            help="All layers compete, or each gets the sparsity.",
            rich_help_panel=PRUNING,
        ),
    ] = "global",
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            metavar="N:M",
            help="Keep N of M consecutive inputs, such as 2:4, instead of a --sparsity.",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    structured: Annotated[
        bool,
        typer.Option("--structured", help="Remove whole output channels.", rich_help_panel=PRUNING),
    ] = False,
    prunable: Annotated[
        list[str] | None,
        typer.Option(
            "--prunable",
            metavar="GLOB",
            help="What may be pruned, such as 'layer4.*'; may be repeated. Other --params only adapt. "
            "[default: weights of two dimensions or more]",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    gradients: Annotated[
        int | None,
        typer.Option(
            "--gradients",
            metavar="N",
            help="Samples whose gradients make up the Fisher matrix. [default: 256]",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    damping: Annotated[
        float,
        typer.Option("--damping", help="λ of F = λI + GᵀG/m.", rich_help_panel=PRUNING),
    ] = 1e-5,
    held_out: HeldOut = None,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs-per-step",
            metavar="N",
            help="Of Adam after every step of the gradual schedule.",
            rich_help_panel=PRUNING,
        ),
    ] = 1,
    learning_rate: Annotated[
        float,
        typer.Option("--learning-rate", help="Of that training.", rich_help_panel=PRUNING),
    ] = 1e-3,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare",
            help="Prune by magnitude too, for the curve.",
            rich_help_panel=PRUNING,
        ),
    ] = True,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            metavar="FILE",
            help="Masks, True where a weight is kept. [default: MODEL.masks.safetensors]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    pruned: Annotated[
        Path | None,
        typer.Option(
            "--pruned",
            metavar="FILE",
            help="The pruned weights, a state dict. [default: MODEL.pruned.safetensors]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        options.figure("Accuracy over sparsity, .pdf, .svg or .png. [default: MODEL.pruning.pdf]"),
    ] = None,
    json_file: options.Json = None,
) -> None:
    """Remove most weights of a trained model at the least rise of its loss.

    The file of the model stays as it is: masks and pruned weights are written beside it.

        landscape prune model.pt --sparsity 0.9
    """
    from landscape.analyses.pruning import prune as analyse
    from landscape.plots.writing import require_ending

    from .progress import phases

    about.require_no_products("pruning")
    shares, neighbours = parse_sparsity(sparsity), parse_pattern(pattern)
    if shares is None and neighbours is None:
        raise InputError("say how much is to go: --sparsity 0.9, or --pattern 2:4")
    stem = about.model.stem
    mask_file = masks or about.model.with_name(f"{stem}.masks.safetensors")
    weight_file = pruned or about.model.with_name(f"{stem}.pruned.safetensors")
    figure = output or about.model.with_name(f"{stem}.pruning.pdf")
    require_ending(figure)
    written = require_outputs(about.model, mask_file, weight_file, figure, json_file)
    messages = console(stderr=True)
    problem = about.load(messages)
    unseen = read_held_out(held_out, problem, about, messages)
    with phases(messages, unit="steps") as progress:
        result = analyse(
            problem,
            shares,
            method=method,  # type: ignore[arg-type]
            schedule=schedule,  # type: ignore[arg-type]
            recompute=recompute,
            scope=scope,  # type: ignore[arg-type]
            pattern=neighbours,
            structured=structured,
            prunable=prunable,
            gradients=gradients,
            damping=damping,
            held_out=unseen,
            compare=compare,
            epochs_per_step=epochs,
            learning_rate=learning_rate,
            seed=about.seed,
            progress=progress,
            command=matrix.command_line(),
        )

    def write() -> None:
        result.save_masks(mask_file)
        result.save_weights(weight_file)
        result.plot(figure)

    deliver(
        result,
        json_file,
        lambda screen: _show(screen, result, about.model),
        written=written,
        write=write,
    )


def parse_sparsity(text: str | None) -> list[float] | None:
    """The shares of `--sparsity`.

    >>> parse_sparsity("0.5,0.9"), parse_sparsity(None)
    ([0.5, 0.9], None)
    """
    if text is None:
        return None
    try:
        return [float(share) for share in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"--sparsity {text!r} is no share of weights: write 0.9, or several, as 0.5,0.8,0.9"
        ) from error


def parse_pattern(text: str | None) -> tuple[int, int] | None:
    """The numbers of `--pattern`.

    >>> parse_pattern("2:4")
    (2, 4)
    """
    if text is None:
        return None
    keep, _, among = text.partition(":")
    if not (keep.isdecimal() and among.isdecimal()):
        raise InputError(f"--pattern {text!r} is none: write how many of how many stay, as 2:4")
    return int(keep), int(among)


def _show(screen: "Console", result: "Pruning", model: Path) -> None:
    """Before and after, per layer, and what it cost."""
    from rich.markup import escape

    from landscape.numerals import duration, memory, number
    from landscape.plots.pruning import NAMES

    from .output import printable
    from .remarks import describe_problem
    from .tables import escaped, fact_grid, plain_table

    trained = "gradual" if result.schedule == "gradual" else "one-shot"
    screen.print(f"[bold]{NAMES[result.method]}[/bold], {trained}, of {escape(str(model))}")
    screen.print(
        printable(describe_problem(result.provenance["problem"])), style="dim", markup=False
    )
    table = plain_table(
        "", "before", "after", *(["by magnitude"] if result.magnitude_steps else [])
    )
    last = result.magnitude_steps[-1].quality if result.magnitude_steps else None
    unseen = result.held_out_before is not None
    _rows(table, "training", result.before, result.after, None if unseen else last)
    if result.held_out_before is not None and result.held_out_after is not None:
        _rows(table, "held-out", result.held_out_before, result.held_out_after, last)
    screen.print(table)
    layers = plain_table("layer", "weights", "removed", "")
    for layer in result.layers:
        share = f"{100 * layer.pruned / layer.weights:.1f} %"
        layers.add_row(escaped(layer.name), f"{layer.weights:,}", f"{layer.pruned:,}", share)
    layers.add_row(
        "all", f"{result.prunable:,}", f"{result.pruned:,}", f"{100 * result.sparsity:.1f} %"
    )
    screen.print(layers)
    facts = fact_grid()
    if result.predicted_increase is not None and result.schedule == "one-shot":
        rise, found = result.predicted_increase, result.after.loss - result.before.loss
        facts.add_row(
            "rise of training loss", f"{number(found)}; by the quadratic model {number(rise)}"
        )
    facts.add_row("cost", f"{duration(result.cost.seconds)}, peak {memory(result.cost.peak_bytes)}")
    screen.print(facts)


def _rows(
    table: Any, data: str, before: "Quality", after: "Quality", other: "Quality | None"
) -> None:
    from landscape.numerals import number

    columns = [before, after] + ([other] if other is not None else [])
    table.add_row(f"{data} loss", *(number(q.loss, 3) for q in columns))
    if before.accuracy is not None:
        table.add_row(
            f"{data} accuracy",
            *(f"{100 * q.accuracy:.1f} %" for q in columns if q.accuracy is not None),
        )
