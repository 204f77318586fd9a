"""`landscape surface`: the loss on a grid of directions through a trained model's weights."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import InputError

from . import grid_options as grid
from . import matrix_options as matrix
from . import options, remarks
from . import picture_options as picture
from .options import CURVATURE, OUTPUT
from .output import console, deliver, one_line, require_folder, require_outputs
from .parsing import parse_numbers, parse_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from landscape.analyses.axes import Axes
    from landscape.analyses.surface import Surface
    from landscape.problem import Problem

COMPUTED = ("hessian", "random", "gradient")
AXES = (*COMPUTED, "optimizer", "trajectory", "models")


def surface(
    about: options.ModelOptions,
    saved: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Draw an earlier result (--json) anew, without a model.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    axes: Annotated[
        str,
        typer.Option(
            "--axes",
            metavar="|".join(AXES) + "|FILE",
            help="Directions: eigenvectors of the Hessian, Gaussian, the gradient's, Adam's moments, a path of "
            "checkpoints, other models, or vectors that landscape eigen --vectors wrote.",
            rich_help_panel=CURVATURE,
        ),
    ] = "hessian",
    ranks: grid.Ranks = "1,2",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="A model of the same kind, for trajectory (in order) and models (one or two); may be repeated.",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    optimizer: Annotated[
        Path | None,
        typer.Option(
            "--optimizer",
            metavar="FILE",
            help="State of an Adam, for optimizer axes.",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            "--normalise",
            metavar="filter|layer|weight|model|none",
            help="Scale of the directions. [default: filter for random axes, none for others]",
            rich_help_panel=CURVATURE,
        ),
    ] = None,
    vectors: Annotated[
        str,
        typer.Option(
            "--biases",
            metavar="scale|keep|leave-out",
            help="Biases and normalisation parameters when directions are scaled.",
            rich_help_panel=CURVATURE,
        ),
    ] = "scale",
    points: grid.Points = "51",
    extent: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="auto|X|X,X",
            help="How far to both sides; auto: until the loss is five times the model's, or around all models.",
            rich_help_panel=CURVATURE,
        ),
    ] = "auto",
    gradient_norm: Annotated[
        bool,
        typer.Option(
            "--gradient-norm",
            help="Compute the gradient's norm at every point too.",
            rich_help_panel=CURVATURE,
        ),
    ] = False,
    curvature: Annotated[
        int,
        typer.Option(
            "--curvature",
            metavar="N",
            min=0,
            help="Largest and smallest eigenvalue of the Hessian at N points along each axis; 0: none.",
            rich_help_panel=CURVATURE,
        ),
    ] = 0,
    adaptive: grid.Adaptive = False,
    reestimate: grid.Reestimate = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Compare the curvature along the axes with the Hessian's.",
            rich_help_panel=CURVATURE,
        ),
    ] = True,
    resume: matrix.Resume = None,
    arrays: Annotated[
        Path | None,
        typer.Option(
            "--arrays",
            metavar="FILE",
            help="Write the grid as arrays, .npz or .safetensors.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        options.figure(
            "Figure: .pdf, .png, .svg, .html; .gif: a film of a trajectory. [default: MODEL.surface.pdf]"
        ),
    ] = None,
    drawn: picture.Draw = "auto",
    quantity: picture.Quantity = "loss",
    scale: picture.Scale = "auto",
    json_file: options.Json = None,
) -> None:
    """The loss around a trained model, on a grid of directions, with its self-checks.

    Hessian axes stay eigenvectors; the loss of every point is that of all the data, with a standard error.
    Exit code 3 when the curvature along an axis is not what the Hessian says; the results are written all
    the same.

        landscape surface model.pt --axes hessian --ranks 1,-1 --json surface.json

        landscape surface --from surface.json -o surface.html
    """
    from landscape.analyses.surface import Surface
    from landscape.plots.surface import require_style
    from landscape.plots.writing import require_ending

    style = {"kind": drawn, "quantity": quantity, "scale": scale}
    require_style(drawn, quantity, scale)
    if saved is not None:
        figure = output or saved.with_suffix(".pdf")
        require_ending(figure, page=True, film=True)
        require_folder(figure)
        if figure.resolve() == saved.resolve():
            raise InputError(f"{str(saved)!r} is the result itself: choose another -o")
        Surface.load(saved).plot(figure, **style)
        console().print(f"wrote {figure}", markup=False, soft_wrap=True)
        return
    model = about.model
    if model == options.NO_MODEL:
        raise InputError("no model was named: give its file, or a saved surface with --from")
    figure = output or model.with_name(f"{model.stem}.surface.pdf")
    require_ending(figure, page=True, film=True)
    written = require_outputs(model, figure, arrays, json_file)
    require_outputs(model, *written, resume)
    if arrays is not None and arrays.suffix.lower() not in (".npz", ".safetensors"):
        raise InputError(f"--arrays is {str(arrays)!r}: end it in .npz or .safetensors")
    counts, places = parse_whole(points, "--points"), parse_whole(ranks, "--ranks")
    ends: Any = extent if extent == "auto" else parse_numbers(extent, "--range")
    execution = about.execution()
    messages = console(stderr=True)
    problem = about.load(messages)
    chosen = _axes(
        axes,
        problem,
        about,
        messages,
        ranks=places,
        checkpoints=checkpoint or [],
        optimizer=optimizer,
        normalise=normalise,
        vectors=vectors.replace("-", " "),
    )
    from landscape.analyses.surface import surface as analyse

    from .progress import phases

    with phases(messages) as progress:
        result = analyse(
            problem,
            chosen,
            ranks=places,
            points=counts[0] if len(counts) == 1 else counts,
            extent=ends[0] if len(ends) == 1 else ends,
            norm_stats="reestimated" if reestimate else None,
            gradient_norm=gradient_norm,
            curvature=curvature,
            adaptive=adaptive,
            check=check,
            seed=about.seed,
            progress=progress,
            command=matrix.command_line(),
            resume=resume,
            say=lambda sentence: messages.print(one_line(sentence), markup=False),
            **execution,
        )

    def write() -> None:
        if arrays is not None:
            result.save_arrays(arrays)
        if len(result.axes) <= 2:
            result.plot(figure, **style)

    deliver(
        result,
        json_file,
        partial(_show, result=result, model=model),
        written=written,
        write=write,
        resume=resume,
    )


def _axes(
    name: str,
    problem: "Problem",
    about: options.ModelOptions,
    messages: "Console",
    *,
    ranks: "Sequence[int]",
    checkpoints: "Sequence[Path]",
    optimizer: Path | None,
    normalise: str | None,
    vectors: Any,
) -> "Axes | Any":
    """The directions that were asked for, or the name of those that the analysis makes itself."""
    from landscape.analyses import axes as made
    from landscape.analyses.eigen import read_vectors
    from landscape.loading.optimizer import read_optimizer

    if checkpoints and name not in ("trajectory", "models"):
        raise InputError(f"--checkpoint goes with --axes trajectory or models, not {name}")
    if name == "random":
        scale: Any = "filter" if normalise is None else normalise
        by = None if scale == "none" else scale
        return made.random_axes(problem, len(ranks), by=by, vectors=vectors, seed=about.seed)
    if name == "hessian" and normalise in (None, "none"):
        return name
    names = [path.stem for path in checkpoints]
    if name == "hessian":
        found = made.hessian_axes(problem, ranks, seed=about.seed)
    elif name == "gradient":
        found = made.gradient_axes(problem)
    elif name == "optimizer":
        if optimizer is None:
            raise InputError("--axes optimizer needs --optimizer FILE, the state of an Adam")
        found = made.optimizer_axes(problem, read_optimizer(optimizer))
    elif name in ("trajectory", "models"):
        others = [about.open(path, messages) for path in checkpoints]
        of = made.trajectory_axes if name == "trajectory" else made.model_axes
        found = of(problem, others, names=names)
    elif Path(name).exists():
        found = made.given_axes(problem, read_vectors(name))
    else:
        raise InputError(f"--axes is {name!r}: choose {', '.join(AXES)}, or a file of vectors")
    if normalise in (None, "none"):
        return found
    scaled: Any = normalise
    return made.scaled(problem, found, scaled, vectors=vectors)


def _show(screen: "Console", result: "Surface", model: Path) -> None:
    """The axes with their checks, and what the surface is of."""
    import numpy as np

    from landscape.numerals import number, with_error

    from .tables import escaped, fact_grid, plain_table

    kind = {"hessian": "Hessian"}.get(result.kind, result.kind)
    remarks.show_heading(screen, f"Loss along {kind} axes", model, result.provenance["problem"])
    table = plain_table("axis", "curvature", "from", "to", "off the Hessian by")
    for i, (axis, points) in enumerate(zip(result.axes, result.grid, strict=True)):
        found = None if result.checks.axes is None else result.checks.axes[i]
        curvature = "" if found is None else number(found.curvature)
        if axis.eigenvalue is not None and axis.residual is not None:
            curvature = with_error(axis.eigenvalue, axis.residual)
        off = "not checked"
        if found is not None:
            off = (
                "no plateau"
                if found.relative_error is None
                else f"{100 * found.relative_error:.1g} %"
            )
        table.add_row(escaped(axis.name), curvature, number(points[0]), number(points[-1]), off)
    screen.print(table)
    facts = fact_grid()
    finite = result.loss[np.isfinite(result.loss)]
    lowest, highest = number(finite.min(), 3), number(finite.max(), 3)
    spread = float(np.nanmedian(result.loss_standard_error))
    facts.add_row(
        "loss", f"{number(result.center, 3)} at the model, {lowest} to {highest} on the grid"
    )
    facts.add_row("data", f"± {number(spread)} at a typical point, over the samples")
    missing = result.loss.size - len(finite)
    if missing:
        facts.add_row("", f"[red]{missing:,} of {result.loss.size:,} points are not finite[/red]")
    if result.normalisation is not None:
        facts.add_row("scale", f"of the weights by {result.normalisation}")
    if result.norm_stats is not None:
        facts.add_row("batch norm", f"{result.norm_stats} statistics at every point")
    if result.curvature is not None:
        ends = result.curvature
        worst = np.nanmax(-ends.smallest / ends.largest)
        facts.add_row(
            "convexity",
            f"the most negative eigenvalue is at most {number(worst, 2)} of the largest, on "
            f"{ends.largest.size:,} points",
        )
    if result.interpolation is not None and result.interpolation.computed < result.loss.size:
        about = result.interpolation
        facts.add_row(
            "interpolated",
            f"{about.points - about.computed:,} of {about.points:,} points, off by at most "
            f"{100 * about.error:.1g} % of the loss's span on {about.held_back} held back",
        )
    for marker in result.markers[-3:]:
        facts.add_row(escaped(marker.name), f"{number(marker.distance)} from the plane")
    for note in result.notes:
        facts.add_row("note", escaped(note))
    products, spent = remarks.describe_cost(result.cost)
    facts.add_row("cost", f"{result.evaluations:,} points, {products}, {spent}")
    screen.print(facts)


command = options.on_model(surface, model_required=False)
