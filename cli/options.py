"""Options that commands on a model share, and how they become a problem."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import InputError

from .output import one_line
from .parsing import (
    parse_arguments,
    parse_dtype,
    parse_engine,
    parse_limit,
    parse_memory,
    parse_norm_stats,
    parse_products,
    read_plan,
)

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from landscape.operators.products.plan import Execution
    from landscape.problem import Problem

MODEL = "Model"
CURVATURE = "Curvature"
EXECUTION = "Execution"
OUTPUT = "Output"

Model = Annotated[
    Path,
    typer.Argument(
        help="A problem archive; weights (.pt, .safetensors) with --model; a torch.export program; a "
        "Hugging Face folder. Everything but an archive needs --data.",
    ),
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
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="KEY",
        help="Where in a checkpoint the weights lie, such as ema. [default: the usual places]",
        rich_help_panel=MODEL,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME|FILE|FOLDER|PACKAGE.MODULE:CALLABLE",
        help="digits, breast-cancer, diabetes, mnist5k, text (also digits:train, …); .npz, .pt, "
        ".safetensors, .csv, .parquet; a folder of images, one subfolder a class; a text; or a "
        "callable that returns data.",
        rich_help_panel=MODEL,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="COLUMN",
        help="Column or array that holds the targets.",
        rich_help_panel=MODEL,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="FOLDER|characters|ascii",
        help="How a text becomes tokens. [default: the model's folder, else characters]",
        rich_help_panel=MODEL,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        min=1,
        help="Tokens in a window of text. [default: 64]",
        rich_help_panel=MODEL,
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss",
        metavar="NAME|PACKAGE.MODULE:CALLABLE",
        help="cross_entropy, token_cross_entropy, nll, mse, l1, huber, bce, bce_with_logits; inferred "
        "from the targets when absent.",
        rich_help_panel=MODEL,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--limit",
        metavar="N|auto",
        help="Use N samples, a seeded random subset with class proportions kept; 0: all of them; auto "
        "(spectrum only): as many as --data-tolerance needs.",
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
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Let the file run its author's code: pickled modules, TorchScript.",
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
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="auto|split|double-backward",
        help="How products are computed; auto: split where it can be traced and pays.",
        rich_help_panel=EXECUTION,
    ),
]
MemoryBudget = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Of kept residuals and products, such as 500MB, 2GB, 1.5GiB; auto: half of what is free.",
        rich_help_panel=EXECUTION,
    ),
]
Products = Annotated[
    str | None,
    typer.Option(
        "--products",
        metavar="float32|float64|bfloat16|tf32",
        help="Type of the arithmetic in products; sums stay in --dtype. [default: --dtype]",
        rich_help_panel=EXECUTION,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile split products with Inductor; needs a C++ compiler.",
        rich_help_panel=EXECUTION,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Compute as in an earlier result (--json), to the last bit.",
        rich_help_panel=EXECUTION,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE|-", help="Write the numbers; - for stdout.", rich_help_panel=OUTPUT
    ),
]


def figure(help: str) -> Any:
    """`-o` of a command that draws."""
    return typer.Option("-o", "--output", metavar="FILE", help=help, rich_help_panel=OUTPUT)


Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT),
]


NO_MODEL = Path()


@dataclass(frozen=True)
class ModelOptions:
    """What every command on a model is told about it."""

    model: Model
    factory: Factory = None
    factory_arguments: FactoryArguments = None
    weights: Weights = None
    data: Data = None
    target: Target = None
    tokenizer: Tokenizer = None
    context: Context = None
    loss: Loss = None
    limit: Limit = None
    batch_size: BatchSize = None
    params: Params = None
    norm_stats: NormStats = None
    trust_pickle: TrustPickle = False
    device: Device = None
    dtype: Dtype = None
    seed: Seed = 0
    engine: Engine = "auto"
    memory: MemoryBudget = "auto"
    products: Products = None
    compile: Compile = False
    plan: PlanFile = None
    debug: Debug = False

    def execution(self) -> "Execution":
        """How products are to be executed: keyword arguments of every analysis."""
        asked: Execution = {"memory": parse_memory(self.memory)}
        if self.plan is not None:
            given = {
                "--engine": self.engine != "auto",
                "--products": self.products is not None,
                "--compile": self.compile,
            }
            if any(given.values()):
                names = " and ".join(name for name, there in given.items() if there)
                raise InputError(f"--plan says what {names} would: leave one of them out")
            return {**asked, "plan": read_plan(self.plan)}
        return {
            **asked,
            "engine": parse_engine(self.engine),
            "products": parse_products(self.products),
            "compile": self.compile,
        }

    def require_no_products(self, work: str) -> None:
        """Refuse options about products with a matrix: this work makes none."""
        given = {
            "--engine": self.engine != "auto",
            "--memory": self.memory != "auto",
            "--products": self.products is not None,
            "--compile": self.compile,
            "--plan": self.plan is not None,
        }
        named = [name for name, there in given.items() if there]
        if named:
            raise InputError(
                f"{named[0]} is about products with a matrix, and {work} makes none: leave it out"
            )

    def open(self, path: Path, messages: "Console") -> "nn.Module":
        """Another model of the same kind, opened as the first is."""
        from landscape.loading.model import open_model

        return open_model(
            path,
            model=self.factory,
            model_args=parse_arguments(self.factory_arguments),
            weights=self.weights,
            trust_pickle=self.trust_pickle,
            say=_teller(messages),
        ).module

    def load(self, messages: "Console") -> "Problem":
        """The problem that was named; choices made for the user go to `messages`."""
        from landscape.loading.problem import load_problem

        return load_problem(
            self.model,
            model=self.factory,
            model_args=parse_arguments(self.factory_arguments),
            weights=self.weights,
            data=self.data,
            target=self.target,
            tokenizer=self.tokenizer,
            context=self.context,
            loss=self.loss,
            limit=parse_limit(self.limit),
            batch_size=self.batch_size,
            params=self.params or "*",
            norm_stats=parse_norm_stats(self.norm_stats),
            device=self.device,
            dtype=parse_dtype(self.dtype),
            seed=self.seed,
            trust_pickle=self.trust_pickle,
            say=_teller(messages),
        )

    def read(self, name: str, messages: "Console") -> Any:
        """Other data beside `--data`, read in the same way."""
        from landscape.loading.data import read_data
        from landscape.loading.problem import own_tokenizer

        return read_data(
            name,
            target=self.target,
            tokenizer=self.tokenizer or own_tokenizer(self.model, name),
            context=self.context,
            say=_teller(messages),
        )


def _teller(messages: "Console") -> Callable[[str], None]:
    """Prints a sentence that may hold names from files."""
    return lambda sentence: messages.print(
        one_line(sentence), style="dim", markup=False, soft_wrap=True
    )


def on_model(command: Callable[..., None], *, model_required: bool = True) -> Callable[..., None]:
    """A command whose first parameter, `ModelOptions`, becomes options of the command line.

    Where the model is not required, its path is `NO_MODEL` if none was named.
    """
    defaults = {} if model_required else {"model": NO_MODEL}
    shared = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=defaults.get(
                option.name,
                inspect.Parameter.empty if option.default is MISSING else option.default,
            ),
            annotation=option.type,
        )
        for option in fields(ModelOptions)
    ]
    # By keyword, so that an option of the command's own may be required.
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        about = ModelOptions(**{option.name: given.pop(option.name) for option in shared})
        command(about, **given)

    run.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in [*shared, *own]}
    return run
