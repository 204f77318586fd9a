"""Problem archives, and `model.pt` files that need a word from the user: in, a live `Problem`."""

import difflib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.demos import DEMOS
from landscape.errors import InputError
from landscape.loading.data import infer_loss, read_data, take
from landscape.loading.names import call, import_callable
from landscape.objective import Loss
from landscape.problem import Problem
from landscape.results import atomic
from landscape.undisturbed import NormStats, undisturbed

FORMAT = "landscape/problem/1"
# The only names in a file that are called without being typed.
_OWN = {demo.factory for demo in DEMOS.values()}


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
        "format": FORMAT,
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


def load_problem(
    path: str | Path,
    *,
    model: str | nn.Module | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: Any = None,
    loss: str | Loss | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    params: str | Sequence[str] = "*",
    norm_stats: NormStats | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    trust_program: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Problem:
    """Read `model.pt`: a problem archive, or a state dict together with `model=`.

    Args:
        path: the file.
        model: `package.module:callable` that builds the model, or a module to load the weights into.
            Of the names inside a file, only the factories of the embedded demos are called.
        model_args: keyword arguments for that callable.
        data, loss: override what the archive says; needed for a state dict (a missing loss is inferred
            from the targets, and said). A string is a name as for `--data` and `--loss`.
        limit: use a random subset of so many samples; 0 means all of them.
        batch_size, params, norm_stats, device, dtype: as for `Problem`.
        seed: of the subset.
        trust_program: open an exported program, whose reader in torch runs pickles.
        say: told, in a sentence, of every choice made for the user.

    Raises:
        InputError: the file, the names or the fit between them are wrong.
    """
    content = _read(Path(path))
    archive = content if content.get("format") == FORMAT else {}
    network = _model(content, archive, model, dict(model_args or {}), str(path), trust_program)
    if data is None and not archive:
        raise InputError(f"{str(path)!r} holds weights only: say which data to use with --data")
    saved = archive.get("data")
    saved = saved if isinstance(saved, dict) else {}
    if "program" in archive and norm_stats not in (None, archive.get("norm_stats")):
        raise InputError(
            f"the program in {str(path)!r} was exported with {archive.get('norm_stats')} statistics in "
            f"batch normalisation and cannot change to {norm_stats}"
        )
    rows = limit if limit is not None else (saved.get("limit") if data is None else None)
    rows = rows or None
    if data is None and "tensors" in saved:
        tensors = tuple(saved["tensors"])
        samples: Any = tensors if rows is None else take(tensors, rows, seed)
    elif data is None or isinstance(data, str):
        samples = read_data(_saved_name(saved) if data is None else data, limit=rows, seed=seed)
    else:
        samples = data if rows is None else take(data, rows, seed)
    if loss is None and "loss" in archive:
        loss = str(archive["loss"])
    elif loss is None:
        loss = infer_loss(samples)
        say(f"no loss was given: {loss} fits the targets")
    elif isinstance(loss, str) and ":" in loss:
        loss = import_callable(loss)
    unbatched = isinstance(samples, tuple)
    return Problem(
        network,
        loss,
        samples,
        params=params,
        norm_stats=norm_stats or archive.get("norm_stats", "running"),
        device=device,
        dtype=dtype,
        batch_size=batch_size or (archive.get("batch_size") if unbatched else None),
    )


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a `torch.save` file, read without running anything in it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {str(path)!r}") from error
    except IsADirectoryError as error:
        raise InputError(f"{str(path)!r} is a folder, not a file") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{str(path)!r} is a pickle that holds more than weights, and opening it would run code: "
            "save model.state_dict() instead and name the model with --model package.module:factory"
        ) from error
    except Exception as error:  # damaged and foreign files fail in many ways
        reason = str(error).strip().split("\n")[0].removesuffix(".")
        raise InputError(f"cannot read {str(path)!r} as a model: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{str(path)!r} holds a {type(content).__name__}, not a state dict or a problem archive"
        )
    return content


def _model(
    content: dict[str, Any],
    archive: dict[str, Any],
    model: str | nn.Module | None,
    model_args: dict[str, Any],
    path: str,
    trust_program: bool,
) -> nn.Module:
    if model is None and "program" in archive:
        return _import_program(archive["program"], path, trust_program)
    weights = archive.get("state_dict") if archive else content
    if isinstance(model, nn.Module):
        network = model
    elif model is not None:
        network = call(model, **model_args)
    elif archive:
        factory = archive.get("factory")
        factory = factory if isinstance(factory, dict) else {}
        name = str(factory.get("name"))
        if name not in _OWN:
            raise InputError(
                f"{path!r} names the factory {name!r}, which is none of landscape's own: if you trust "
                f"it, say --model {name}"
            )
        network = call(name, **{**(factory.get("arguments") or {}), **model_args})
    else:
        raise InputError(
            f"{path!r} holds weights without a model: say --model package.module:factory"
        )
    if not isinstance(network, nn.Module):
        raise InputError(f"{model!r} returned a {type(network).__name__}, not a torch.nn.Module")
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{path!r} holds no state dict: its entries are not all tensors")
    _load_weights(network, weights, path)
    return network


def _load_weights(network: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    own = network.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or unexpected or wrong:
        close = [
            f"{name} → {near[0]}"
            for name in unexpected
            if (near := difflib.get_close_matches(name, missing, n=1))
        ]
        listed = [
            f"{label} {len(names)}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for label, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of wrong shape", wrong),
                ("nearest names", close),
            )
            if names
        ]
        raise InputError(
            f"the weights in {path!r} do not fit {type(network).__name__} ({'; '.join(listed)}): "
            "check --model and its arguments"
        )
    network.load_state_dict(weights)


def _saved_name(saved: Mapping[str, Any]) -> str:
    """The data set that an archive names; a callable there is not called unless it is typed."""
    from landscape.demos.data import DATASETS

    name = str(saved.get("name"))
    if name.partition(":")[0] not in DATASETS:
        raise InputError(
            f"the archive names the data {name!r}, which is no embedded data set: if you trust it, say "
            f"--data {name}"
        )
    return name


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


def _import_program(program: Any, path: str, trust: bool) -> nn.Module:
    if not trust:
        raise InputError(
            f"{path!r} holds an exported program, and torch reads parts of those by unpickling, which "
            "can run code: if you trust the file, say --trust-program (trust_program=True)"
        )
    try:
        return torch.export.load(io.BytesIO(program.numpy().tobytes())).module()
    except Exception as error:
        raise InputError(f"the program in {path!r} cannot be opened: {error}") from error
