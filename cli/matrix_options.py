"""Options that commands on a curvature matrix share."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import CURVATURE, EXECUTION

Operator = Annotated[
    str,
    typer.Option(
        "--operator",
        help="hessian, gauss-newton, fisher, empirical-fisher or gradient-covariance.",
        rich_help_panel=CURVATURE,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        help="Targets drawn per loss term for the Fisher matrix. [default: exact]",
        rich_help_panel=CURVATURE,
    ),
]
EigenvalueTolerance = Annotated[
    float,
    typer.Option(
        "--tolerance",
        help="Accepted residual of an eigenvalue, as a share of the largest.",
        rich_help_panel=CURVATURE,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max-steps",
        metavar="N",
        help="Products of the search for eigenvalues at most. [default: 1000, or 100 for each eigenvalue]",
        rich_help_panel=CURVATURE,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Keep the state there: after a kill the same command goes on, to the same bits. The file is "
        "removed at the end.",
        rich_help_panel=EXECUTION,
    ),
]


def command_line() -> str:
    """What was typed, for provenance."""
    return shlex.join(["landscape", *sys.argv[1:]])
