"""`landscape compare`: the surfaces of several models side by side, from their saved numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.errors import InputError, UntrustedResult

from . import options
from . import picture_options as picture
from .options import OUTPUT
from .output import console, require_folder, require_other

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from landscape.analyses.surface import Surface


def compare(
    surfaces: Annotated[
        list[Path],
        typer.Argument(
            metavar="SURFACE.json…",
            help="Two to five surfaces, as landscape surface --json writes them.",
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
    quantity: picture.Quantity = "loss",
    scale: picture.Scale = "auto",
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
    debug: options.Debug = False,
) -> None:
    """Compare the surfaces of several models: one figure, the same axes, scale and levels.

    Surfaces can be compared if their losses, the kinds of their axes and the scales of these are the
    same. Exit code 3 when one of them could not be trusted; the figure is written all the same.

        landscape compare sgd.json sam.json --name SGD --name SAM
    """
    from rich.markup import escape

    from landscape.plots.surfaces import plot_surfaces
    from landscape.plots.writing import require_ending

    require_ending(output)
    require_folder(output)
    for path in surfaces:
        require_other(output, path)
    found = [_read(path) for path in surfaces]
    labels = names or [path.stem for path in surfaces]
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


def _read(path: Path) -> "Surface":
    """A saved surface.

    Raises:
        InputError: it is something else, such as a model.
    """
    from landscape.analyses.surface import Surface

    if path.suffix.lower() != ".json":
        raise InputError(
            f"{str(path)!r} is not named as a saved surface: measure it first with landscape surface "
            "MODEL --json FILE.json"
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
