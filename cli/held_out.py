"""`--held-out`: data by which a command judges what it did on the training data."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import MODEL, ModelOptions

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.problem import Problem

HeldOut = Annotated[
    str | None,
    typer.Option(
        "--held-out",
        metavar="DATA|none",
        help="Data to judge by, as for --data. [default: the test part of an embedded data set]",
        rich_help_panel=MODEL,
    ),
]


def read_held_out(
    name: str | None, problem: "Problem", about: ModelOptions, messages: "Console"
) -> Any:
    """The data to judge by: those named, or the test part of an embedded data set."""
    if name == "none":
        return None
    if name is None:
        used = str(problem.origin["data"])
        data, _, part = used.partition(":")
        if part != "train":
            messages.print(
                "no held-out data: judged by the training data alone (--held-out names some)",
                style="dim",
            )
            return None
        name = f"{data}:test"
        messages.print(f"held-out data: {name}", style="dim", markup=False)
    return about.read(name, messages)
