"""Options of the commands that draw surfaces."""

from typing import Annotated

import typer

from .options import OUTPUT

Draw = Annotated[
    str,
    typer.Option(
        "--draw",
        metavar="auto|contour|3d|line",
        help="A map, a relief, or the line of a single axis.",
        rich_help_panel=OUTPUT,
    ),
]
Quantity = Annotated[
    str,
    typer.Option(
        "--quantity",
        metavar="loss|accuracy|loss_standard_error|rise|gradient_norm|convexity",
        help="What is drawn; rise: the loss less the model's; convexity: λ min / λ max.",
        rich_help_panel=OUTPUT,
    ),
]
Scale = Annotated[
    str,
    typer.Option(
        "--scale",
        metavar="auto|log|linear",
        help="Of what is drawn; auto: log where it spans more than a decade.",
        rich_help_panel=OUTPUT,
    ),
]
