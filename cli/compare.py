"""`landscape compare`: the surfaces of several models side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import InputError, UntrustedResult

from . import grid_options as grid
from . import matrix_options as matrix
from . import options
from . import picture_options as picture
from .options import CURVATURE, OUTPUT
from .output import console, require_folder, require_other
from .parsing import parse_numbers, parse_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from landscape.analyses.surface import Surface


@options.on_model
def compare(
    about: options.ModelOptions,
    others: Annotated[
        list[Path],
        typer.Argument(
            metavar="OTHER…",
            help="One to four more: models, or saved surfaces (.json) if the first is one.",
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="TEXT",
            help="Of a surface, in their order; repeated. [default: the files' names]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    axes: Annotated[
        str,
        typer.Option(
            "--axes",
            metavar="hessian|random|gradient",
            help="Directions of every model: its own eigenvectors, Gaussian ones of one seed scaled by its own "
            "filters, or its gradient's.",
            rich_help_panel=CURVATURE,
        ),
    ] = "hessian",
    ranks: grid.Ranks = "1,2",
    points: grid.Points = "31",
    extent: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="auto|X|X,X",
            help="How far to both sides, for all; auto: the widest of the ranges suggested for each.",
            rich_help_panel=CURVATURE,
        ),
    ] = "auto",
    adaptive: grid.Adaptive = False,
    reestimate: grid.Reestimate = False,
    quantity: picture.Quantity = "loss",
    scale: picture.Scale = "auto",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FOLDER",
            help="Write every surface there as NAME.json, to be drawn again.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Figure: .pdf, .png or .svg.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("surfaces.pdf"),
) -> None:
    """Compare the surfaces of several models: one figure, the same axes, scale and levels.

    Models are measured on the same data over the same range. Saved surfaces can be compared if their losses,
    the kinds of their axes and the scales of these are the same. Exit code 3 when one of them could not
    be trusted; the figure is written all the same.

        landscape compare sgd.pt sam.pt --axes hessian --points 51 --save surfaces

        landscape compare surfaces/sgd.json surfaces/sam.json -o compared.png
    """
    from rich.markup import escape

    from landscape.plots.surface import require_style
    from landscape.plots.surfaces import MOST, plot_surfaces
    from landscape.plots.writing import require_ending

    files = [about.model, *others]
    labels = names or [path.stem for path in files]
    require_style("auto", quantity, scale)
    if not 2 <= len(files) <= MOST:
        raise InputError(f"{len(files)} models or surfaces were named: compare 2 to {MOST}")
    if len(labels) != len(files):
        raise InputError(
            f"--name was given {len(labels)} times for {len(files)} models or surfaces"
        )
    require_ending(output)
    require_folder(output)
    for path in files:
        require_other(output, path)
    if about.model.suffix.lower() == ".json":
        if save is not None:
            raise InputError("--save is for models: these surfaces are saved already")
        found = [_read(path) for path in files]
    else:
        if quantity == "convexity":
            raise InputError(
                "--quantity convexity is for saved surfaces: measure each with landscape surface --curvature N"
            )
        targets = [] if save is None else _targets(save, labels, files)
        counts = parse_whole(points, "--points")
        ends: Any = extent if extent == "auto" else parse_numbers(extent, "--range")
        found = _measured(
            about,
            files,
            labels,
            axes=axes,
            ranks=parse_whole(ranks, "--ranks"),
            points=counts[0] if len(counts) == 1 else counts,
            extent=ends[0] if len(ends) == 1 else ends,
            adaptive=adaptive,
            gradient_norm=quantity == "gradient_norm",
            norm_stats="reestimated" if reestimate else None,
        )
        for surface, target in zip(found, targets, strict=False):
            surface.save(target)
    plot_surfaces(
        [surface.to_dict() for surface in found],
        output,
        names=labels,
        quantity=quantity,  # type: ignore[arg-type]
        scale=scale,  # type: ignore[arg-type]
    )
    screen = console()
    _show(screen, found, labels)
    screen.print(f"wrote {escape(str(output))}", soft_wrap=True)
    failures = [
        f"{label}: {failure}"
        for label, surface in zip(labels, found, strict=True)
        for failure in surface.failures
    ]
    if failures:
        raise UntrustedResult("; ".join(failures))


def _targets(folder: Path, names: "Sequence[str]", files: "Sequence[Path]") -> list[Path]:
    """Where the surfaces will be saved.

    Raises:
        InputError: two would have the same file, or one is a model's.
    """
    targets = [folder / f"{name}.json" for name in names]
    if len(set(targets)) < len(targets) or any(Path(name).name != name for name in names):
        raise InputError(
            f"the names {', '.join(names)} do not make a file each in {str(folder)!r}: give --name"
        )
    for target in targets:
        for path in files:
            require_other(target, path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--save is {str(folder)!r}, which is no folder: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    return targets


def _measured(
    about: options.ModelOptions, files: "Sequence[Path]", names: "Sequence[str]", **asked: Any
) -> "list[Surface]":
    """The surfaces of models, on the same data."""
    from dataclasses import replace

    from landscape.analyses.surfaces import surfaces

    from .progress import phases

    execution = about.execution()
    messages = console(stderr=True)
    problems = [replace(about, model=path).load(messages) for path in files]
    with phases(messages) as progress:
        return surfaces(
            problems,
            progress=lambda i, phase, done, of: progress(f"{names[i]}: {phase}", done, of),
            seed=about.seed,
            command=matrix.command_line(),
            **asked,
            **execution,
        )


def _read(path: Path) -> "Surface":
    """A saved surface.

    Raises:
        InputError: it is something else, such as a model.
    """
    from landscape.analyses.surface import Surface

    if path.suffix.lower() != ".json":
        raise InputError(
            f"{str(path)!r} is not named as a saved surface, and the first is one: name models only, or "
            "surfaces (.json) only"
        )
    return Surface.load(path)


def _show(screen: "Console", surfaces: "Sequence[Surface]", names: "Sequence[str]") -> None:
    """The loss of every model, and how it bends along its axes."""
    import numpy as np

    from landscape.numerals import count, number

    from .tables import escaped, plain_table

    axes = range(len(surfaces[0].axes))
    columns = [f"curvature {i + 1}" for i in axes]
    table = plain_table("surface", "loss", *columns, "highest loss")
    for surface, name in zip(surfaces, names, strict=True):
        finite = surface.loss[np.isfinite(surface.loss)]
        missing = surface.loss.size - finite.size
        table.add_row(
            escaped(name),
            number(surface.center, 3),
            *(number(value, 3) for value in surface.checks.curvature_at_scale),
            (number(float(finite.max()), 3) if finite.size else "unknown")
            + (f" ({count(missing, 'point')} not finite)" if missing else ""),
        )
    screen.print(table)
    screen.print("curvature: second difference of the loss over half the range", style="dim")
