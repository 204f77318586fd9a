"""Problem archives: model, data and loss in one file that opens without flags."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.loading.contents import ARCHIVE
from landscape.results import atomic
from landscape.undisturbed import NormStats, undisturbed


def save_problem(
    path: str | Path,
    model: nn.Module,
    *,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    data: str | tuple[Tensor, ...],
    loss: str,
    limit: int | None = None,
    batch_size: int | None = None,
    norm_stats: NormStats = "running",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a problem archive: everything `landscape spectrum` needs, in one file.

    The file is an ordinary `torch.save` of a dictionary of tensors, strings and numbers, readable with
    `weights_only=True`.

    Args:
        path: the file to write; it appears whole or not at all.
        model: its weights are saved, not its code.
        factory: `package.module:callable` that builds the model; None exports the model as a program
            (`torch.export`, batch size dynamic), which needs `data` given as tensors.
        arguments: keyword arguments of the factory (numbers, strings, lists).
        data: the name of a data set as for `--data`, or the tensors (inputs, …, targets) themselves.
        loss: a name, as for `--loss`.
        limit: measure on a random subset of this size unless told otherwise.
        batch_size, norm_stats: defaults of the problem.
        notes: anything worth keeping, such as the training accuracy.

    Raises:
        InputError: the model cannot be exported.
    """
    if isinstance(data, tuple):
        source: dict[str, Any] = {"tensors": [part.detach().cpu() for part in data]}
    else:
        source = {"name": data}
    content: dict[str, Any] = {
        "format": ARCHIVE,
        "data": source | {"limit": limit},
        "loss": loss,
        "batch_size": batch_size,
        "norm_stats": norm_stats,
        "notes": dict(notes or {}),
    }
    if factory is not None:
        content["factory"] = {"name": factory, "arguments": dict(arguments or {})}
        content["state_dict"] = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    else:
        content["program"] = _export(model, source.get("tensors"), norm_stats)
    with atomic(path) as temporary:
        torch.save(content, temporary)


def _export(model: nn.Module, tensors: Sequence[Tensor] | None, norm_stats: NormStats) -> Tensor:
    if not tensors:
        raise InputError("exporting a model needs data given as tensors, or give factory=")
    inputs = tuple(part[:2] for part in tensors[:-1])
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    buffer = io.BytesIO()
    try:
        with undisturbed(list(model.modules()), norm_stats):  # the mode becomes part of the program
            program = torch.export.export(model, inputs, dynamic_shapes=dynamic)
        torch.export.save(program, buffer)
    except Exception as error:  # torch.export raises a large family
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"the model cannot be exported ({reason}): give factory=") from error
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
