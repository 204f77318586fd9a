"""`model.pt` and a few names become a live `Problem`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.batches import DEFAULT_BATCH_SIZE
from landscape.demos.data import DATASETS
from landscape.errors import InputError
from landscape.loading import Say, silent
from landscape.loading.data import read_data
from landscape.loading.data_kinds import kind_of
from landscape.loading.glance import infer_loss
from landscape.loading.model import open_model
from landscape.loading.names import import_callable
from landscape.loading.program import Program
from landscape.loading.remarks import remarks
from landscape.loading.subset import take
from landscape.losses import Loss
from landscape.problem import Problem
from landscape.undisturbed import NormStats


def load_problem(
    path: str | Path,
    *,
    model: str | nn.Module | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    data: Any = None,
    target: str | None = None,
    tokenizer: str | None = None,
    context: int | None = None,
    loss: str | Loss | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    params: str | Sequence[str] = "*",
    norm_stats: NormStats | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    trust_pickle: bool = False,
    say: Say = silent,
) -> Problem:
    """Open a model file of any kind as a problem.

    Args:
        path: a problem archive, weights or a checkpoint (`.pt`, `.safetensors`, sharded ones by their
            index) with `model=`, a `torch.export` program, a Hugging Face folder; TorchScript archives
            and pickled modules with `trust_pickle`. The kind is told from the content.
        model: `package.module:callable` that builds the model, or a module to load the weights into.
            Of the names inside a file, only the factories of the embedded demos are called.
        model_args: keyword arguments for that callable.
        weights: where in a checkpoint the weights lie, such as "ema"; default: the usual places.
        data, loss: override what the archive says; needed for every other kind (a missing loss is inferred
            from the targets, and said). A string is a name as for `--data` and `--loss`.
        target, tokenizer, context: how to read a table or a text, see `read_data`.
        limit: use a random subset of so many samples, class proportions kept; 0 means all of them.
        batch_size, params, norm_stats, device, dtype: as for `Problem`.
        seed: of the subset.
        trust_pickle: let the file run its own code, which is the only way to open some kinds.
        say: told, in a sentence, of every choice made for the user and every file run.

    Returns:
        The problem; its `origin` says what the file was and where the data came from.

    Raises:
        InputError: the file, the names or the fit between them are wrong.
    """
    path = Path(path)
    said: list[str] = []

    def tell(sentence: str) -> None:
        said.append(sentence)
        say(sentence)

    opened = open_model(
        path,
        model=model,
        model_args=model_args,
        weights=weights,
        trust_pickle=trust_pickle,
        say=tell,
    )
    archive = opened.archive
    if data is None and not archive:
        raise InputError(f"{str(path)!r} holds no data: say which to use with --data (data=)")
    saved = archive.get("data", {})
    rows = limit if limit is not None else (saved.get("limit") if data is None else None)
    rows = rows or None
    name = data if isinstance(data, str) else None
    if data is None and "tensors" not in saved:
        name = _saved_name(saved)
    if name is not None:
        samples = read_data(
            name,
            target=target,
            tokenizer=tokenizer or own_tokenizer(path, name),
            context=context,
            limit=rows,
            seed=seed,
            say=tell,
        )
    else:
        samples = tuple(saved["tensors"]) if data is None else data
        samples = samples if rows is None else take(samples, rows, seed)
    if loss is None and "loss" in archive:
        loss = archive["loss"]
    elif loss is None:
        loss = infer_loss(samples)
        tell(f"no loss was given: {loss} fits the targets")
    elif isinstance(loss, str) and ":" in loss:
        loss = import_callable(loss, say=tell)
    chosen = norm_stats or archive.get("norm_stats", "running")
    if opened.program is not None:
        _check_statistics(opened.program, norm_stats, path, tell)
    size = batch_size
    if isinstance(samples, (tuple, Mapping)):
        size = size or archive.get("batch_size")
        if opened.program is not None:
            size = _rows_per_batch(opened.program, samples, size, tell)
    problem = Problem(
        opened.module,
        loss,
        samples,
        params=params,
        norm_stats=chosen,
        device=device,
        dtype=dtype,
        batch_size=size,
    )
    for sentence in remarks(problem):
        tell(sentence)
    problem.origin = {
        "file": str(path),
        "kind": opened.kind,
        "data": name or ("tensors of the archive" if data is None else "given in Python"),
        "seed": seed,
        "limit": rows,
        "said": said,
    }
    return problem


def own_tokenizer(path: Path, name: str) -> str | None:
    """The tokenizer for a text in the folder of a model, if both are."""
    own = (path / "tokenizer.json").is_file() and Path(name).is_file()
    return str(path) if own and kind_of(Path(name)) == "text" else None


def _saved_name(saved: Mapping[str, Any]) -> str:
    """The data set that an archive names; a callable there is not called unless it is typed."""
    name = saved.get("name", "")
    if name.partition(":")[0] not in DATASETS:
        raise InputError(
            f"the archive names the data {name!r}, which is no embedded data set: if you trust it, say "
            f"--data {name}"
        )
    return name


def _check_statistics(program: Program, wanted: NormStats | None, path: Path, say: Say) -> None:
    """Refuse to change what is part of a program."""
    fixed = {("batch" if batch else "running") for batch in program.batch_norms}
    if wanted is not None and fixed and fixed != {wanted}:
        raise InputError(
            f"the program in {str(path)!r} was exported with {' and '.join(sorted(fixed))} statistics in "
            f"batch normalisation and cannot change to {wanted}: leave --norm-stats away or export again"
        )
    if fixed:
        say(f"the program's batch normalisation uses {' and '.join(sorted(fixed))} statistics")


def _rows_per_batch(program: Program, samples: Any, wanted: int | None, say: Say) -> int | None:
    """A batch size that the program takes, for every batch including the last."""
    tensors = list(samples.values()) if isinstance(samples, Mapping) else list(samples)
    rows = len(tensors[0])
    fewest, most = program.fewest_rows, program.most_rows
    if fewest == most:
        size = int(most)
        if wanted not in (None, size) or rows % size:
            raise InputError(
                f"the program was exported for batches of exactly {size} rows, and there are {rows} in "
                f"batches of {wanted or size}: use --batch-size {size} and --limit {rows - rows % size}, or "
                "export it with a dynamic batch size"
            )
        if wanted is None:
            say(f"the program was exported for {size} rows at a time: so are the batches")
        return size
    size = min(wanted or DEFAULT_BATCH_SIZE, rows)
    if size > most:
        say(f"the program takes at most {int(most)} rows at a time: so are the batches")
        size = int(most)
    last = rows % size or size
    if min(size, last) < fewest:
        raise InputError(
            f"the program takes batches of {fewest} rows or more, and {rows} rows in batches of {size} end "
            f"with {last}: use another --batch-size or --limit {rows - last}"
        )
    return size
