"""Options that commands on a model share."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from landscape.errors import InputError

if TYPE_CHECKING:
    import torch

MODEL = "Model"
CURVATURE = "Curvature"
OUTPUT = "Output"

Model = Annotated[
    Path,
    typer.Argument(help="A problem archive, or a state dict together with --model and --data."),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="Callable that builds the model; imported from this folder or the environment.",
        rich_help_panel=MODEL,
    ),
]
FactoryArguments = Annotated[
    str | None,
    typer.Option(
        "--model-args",
        metavar="JSON",
        help="Its keyword arguments, such as '{\"width\": 64}'.",
        rich_help_panel=MODEL,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME|FILE.npz|PACKAGE.MODULE:CALLABLE",
        help="digits, breast-cancer, diabetes, mnist5k, text (also digits:train, digits:test, …), "
        "a file of arrays 'inputs' and 'targets', or a callable that returns data.",
        rich_help_panel=MODEL,
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss",
        metavar="NAME|PACKAGE.MODULE:CALLABLE",
        help="cross_entropy, token_cross_entropy, nll, mse, l1, huber, bce_with_logits; inferred "
        "from the targets when absent.",
        rich_help_panel=MODEL,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=0,
        help="Use N samples, a seeded random subset with class proportions kept; 0: all of them.",
        rich_help_panel=MODEL,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Samples per batch; changes memory and speed, not the result. [default: 256]",
        rich_help_panel=MODEL,
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--params",
        metavar="GLOB",
        help="Only parameters whose names match, such as 'layer4.*'; may be repeated.",
        rich_help_panel=MODEL,
    ),
]
NormStats = Annotated[
    str | None,
    typer.Option(
        "--norm-stats",
        metavar="running|batch",
        help="Statistics used in batch normalisation. [default: running]",
        rich_help_panel=MODEL,
    ),
]
TrustProgram = Annotated[
    bool,
    typer.Option(
        "--trust-program",
        help="Open an exported program inside an archive; doing so can run code of its author.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="cpu|cuda", help="Where to compute.", rich_help_panel=CURVATURE
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|float64",
        help="Floating-point type of weights and products. [default: the weights']",
        rich_help_panel=CURVATURE,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**32 - 1, help="Of every random choice.", rich_help_panel=CURVATURE
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE|-", help="Write the numbers; - for stdout.", rich_help_panel=OUTPUT
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT),
]


def parse_arguments(text: str | None) -> dict[str, Any]:
    """The JSON object of `--model-args`."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--model-args {text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"--model-args {text!r} is no JSON object, such as '{{\"width\": 64}}'")
    return found


def parse_dtype(name: str | None) -> "torch.dtype | None":
    """The type that `--dtype` names."""
    import torch

    known = {"float32": torch.float32, "float64": torch.float64}
    if name is not None and name not in known:
        raise InputError(f"--dtype is {name!r}: choose float32 or float64")
    return None if name is None else known[name]


def parse_norm_stats(name: str | None) -> Literal["running", "batch"] | None:
    """The choice of `--norm-stats`."""
    if name is None:
        return None
    if name == "running":
        return "running"
    if name == "batch":
        return "batch"
    raise InputError(f"--norm-stats is {name!r}: choose running or batch")
