"""Parts of the data that are samples of the same kind: groups at random, and a growing subset."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import batches
from landscape.errors import InputError
from landscape.loading.subset import class_labels, pick, take, target_of
from landscape.problem import Problem


def random_groups(
    problem: Problem, count: int, *, proportional: bool = False, seed: int = 0
) -> Problem | None:
    """The same problem with its samples dealt at random into `count` batches.

    Args:
        problem: the loss and its data, in whatever order.
        count: number of batches, of equal size within one sample; no more than there are samples.
        proportional: give every batch its share of every class, as in data drawn that way.
        seed: of the deal.

    Returns:
        None where the loss is no sum over samples that can be dealt: a closure, batch statistics, data
        beyond what is held in memory, or batches that cannot be cut and joined.
    """
    if problem.objective is None or problem.uses_batch_statistics():
        return None
    held = list(problem.batches())
    if sum(map(batches.size_in_bytes, held)) > batches.KEEP_BYTES:
        return None
    sizes = [batches.row_count(batch) for batch in held]
    owners = torch.empty(sum(sizes), dtype=torch.int64)
    order = _shuffled(_labels(held) if proportional else None, sum(sizes), seed)
    owners[order] = torch.arange(len(order)) % min(count, len(order))
    try:
        parts = _dealt(held, sizes, owners, min(count, len(order)))
        dealt = problem.over([batches.join(group) for group in parts])
    except (InputError, ValueError, RuntimeError):  # rows do not stand for themselves
        return None
    # A loss that looks at several samples together is another one on other batches.
    rounding = torch.finfo(problem.dtype).eps  # of a loss of 0
    same = abs(dealt.loss() - problem.loss()) <= max(1e-4 * abs(problem.loss()), rounding)
    return dealt if same and dealt.terms == problem.terms else None


def random_batches(problem: Problem, size: int, count: int, *, seed: int = 0) -> Problem | None:
    """The same problem on batches of exactly `size` samples, dealt at random without replacement.

    Args:
        problem: the loss and its data, in whatever order.
        size: samples in a batch.
        count: batches at most; fewer where the data have no more.
        seed: of the deal.

    Returns:
        None where there are not two such batches, or where `random_groups` gives None.
    """
    available = problem.samples // size
    # Groups no larger than the batches here or those asked for, which fit into memory, nor many smaller ones.
    groups = max(2, min(available, problem.batch_count))
    if available < 2 or random_groups(problem, groups, seed=seed) is None:
        return None
    count = min(count, available)
    held = list(problem.batches())
    sizes = [batches.row_count(batch) for batch in held]
    owners = torch.full((sum(sizes),), -1, dtype=torch.int64)
    chosen = _shuffled(None, sum(sizes), seed)[: size * count]
    owners[chosen] = torch.arange(len(chosen)) // size
    return problem.over([batches.join(part) for part in _dealt(held, sizes, owners, count)])


def _dealt(held: list[Any], sizes: list[int], owners: Tensor, count: int) -> list[list[object]]:
    """For every group the rows of every batch that it owns."""
    parts: list[list[object]] = [[] for _ in range(count)]
    for batch, size, mine in zip(held, sizes, owners.split(sizes), strict=True):
        for group in mine[mine >= 0].unique().tolist():
            parts[group].append(pick(batch, (mine == group).nonzero()[:, 0], size))
    return parts


def nested(problem: Problem, first: int, *, seed: int = 0) -> dict[int, Any]:
    """Data of ever more samples: `first`, twice as many, …, all of them; each holds those before it.

    The subsets are seeded and keep class proportions.
    """
    sizes = [problem.samples]
    sizes += [first * 2**i for i in reversed(range(64)) if first * 2**i < problem.samples]
    subsets = {problem.samples: problem.data}
    for larger, size in pairwise(sizes):  # a subset of a subset, from the largest down
        subsets[size] = take(subsets[larger], size, seed)
    return dict(reversed(subsets.items()))


def _labels(held: list[object]) -> Tensor | None:
    """Class indices of all samples, where there are some."""
    labels = [class_labels(target_of(batch)) for batch in held]
    known = [label.cpu() for label in labels if label is not None]
    return torch.cat(known) if known and len(known) == len(labels) else None


def _shuffled(labels: Tensor | None, count: int, seed: int) -> Tensor:
    """A random order of all samples, in which those of a class follow each other if classes are given."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return order if labels is None else order[labels[order].argsort(stable=True)]
