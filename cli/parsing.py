"""What options mean: from the text that was typed to values, or one sentence."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from landscape.errors import InputError

if TYPE_CHECKING:
    import torch

    from landscape.operators.products.plan import Arithmetic, Memory


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


def parse_limit(text: str | None) -> int | None:
    """The number of samples of `--limit`."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InputError(
            f"--limit {text!r} is no number of samples: write one, such as 512, 0 for all of them, or, "
            "for landscape spectrum, auto"
        )
    return int(text)


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


def parse_engine(name: str) -> str:
    """The engine that `--engine` names."""
    if name not in ("auto", "split", "double-backward"):
        raise InputError(f"--engine is {name!r}: choose auto, split or double-backward")
    return name.replace("-", " ")


def parse_memory(text: str) -> "Memory":
    """The bytes that `--memory` allows; kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024.

    >>> parse_memory("500MB"), parse_memory("1.5 GiB"), parse_memory("4096"), parse_memory("auto")
    (500000000, 1610612736, 4096, 'auto')
    """
    if text == "auto":
        return "auto"
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([kmgt]?)(i?)b)?", text.strip().lower())
    size = 0
    if found is not None:
        number, prefix, binary = found.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    if size < 1:
        raise InputError(
            f"--memory {text!r} is no size: write auto, a number of bytes, or one such as 500MB, 2GB or "
            "1.5GiB"
        )
    return size


def parse_products(name: str | None) -> "Arithmetic":
    """The type that `--products` names."""
    import torch

    if name is None:
        return None
    if name == "tf32":
        return "tf32"
    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
    if name not in known:
        raise InputError(f"--products is {name!r}: choose float32, float64, bfloat16 or tf32")
    return known[name]


def read_plan(path: Path) -> dict[str, Any]:
    """The plan in a result that was written by `--json`."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--plan {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--plan {str(path)!r} is not JSON: {error}") from error
    about = found.get("provenance") if isinstance(found, dict) else None
    plan = about.get("plan") if isinstance(about, dict) else None
    if not isinstance(plan, dict):
        raise InputError(
            f"--plan {str(path)!r} holds no plan: name what a command on a model wrote by --json"
        )
    return plan


def parse_numbers(text: str, option: str) -> list[float]:
    """The numbers of an option, separated by commas.

    >>> parse_numbers("0.5,1", "--range")
    [0.5, 1.0]
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r} is no list of numbers such as 0.5 or 0.5,1") from error


def parse_whole(text: str, option: str) -> list[int]:
    """The same for whole numbers.

    >>> parse_whole("1,-1", "--ranks")
    [1, -1]
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{option} {text!r} is no list of whole numbers such as 51 or 1,-1"
        ) from error
