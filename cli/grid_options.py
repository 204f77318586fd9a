"""Options of commands that compute the loss on a grid of directions."""

from typing import Annotated

import typer

from .options import CURVATURE

Ranks = Annotated[
    str,
    typer.Option(
        "--ranks",
        metavar="N,N",
        help="Which eigenvalues: 1 is the largest, -1 the most negative. One axis for each.",
        rich_help_panel=CURVATURE,
    ),
]
Points = Annotated[
    str,
    typer.Option(
        "--points",
        metavar="N|N,N",
        help="Points along each axis; odd: the model is one of them.",
        rich_help_panel=CURVATURE,
    ),
]
Adaptive = Annotated[
    bool,
    typer.Option(
        "--adaptive",
        help="Compute only as many points as are needed; interpolate the others to 1 % of the loss's span.",
        rich_help_panel=CURVATURE,
    ),
]
Reestimate = Annotated[
    bool,
    typer.Option(
        "--reestimate",
        help="Estimate running statistics of batch normalisation anew at every point.",
        rich_help_panel=CURVATURE,
    ),
]
