"""Products with the block diagonal of a matrix, and the Lanczos recurrences of all its blocks at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.estimators.probes import rademacher
from landscape.estimators.recurrence import Recurrence, begun
from landscape.estimators.search import CHECK_EVERY
from landscape.estimators.sums import norms
from landscape.operators.base import Operator

Array = NDArray[np.float64]
Follow = Callable[[], None]
WIDTH = 32  # columns of length P multiplied at once


def block_products(
    A: Operator, places: Sequence[Tensor], columns: Sequence[tuple[int, Tensor]]
) -> Iterator[tuple[int, slice, Tensor]]:
    """A times columns that are zero outside one block each, all multiplied together.

    Args:
        A: the operator, order P.
        places: positions (p,) of every block.
        columns: (block, its columns (p, K)).

    Yields:
        (which of `columns`, which of its columns, their products (P, k)).
    """
    queue = [(i, j) for i, (_, part) in enumerate(columns) for j in range(part.shape[1])]
    for begin in range(0, len(queue), WIDTH):
        chunk = queue[begin : begin + WIDTH]
        rows = torch.zeros(len(chunk), A.shape[0], dtype=A.dtype, device=A.device)
        groups, row = [], 0
        for i, members in groupby(chunk, key=lambda member: member[0]):
            chosen = [j for _, j in members]
            b, part = columns[i]
            taken = slice(chosen[0], chosen[-1] + 1)
            rows[row : row + len(chosen), places[b]] = part[:, taken].T
            groups.append((i, taken, slice(row, row + len(chosen))))
            row += len(chosen)
        product = A.product(rows.T)
        for i, taken, where in groups:
            yield i, taken, product[:, where]


def squares_of(places: Sequence[Tensor], product: Tensor) -> Tensor:
    """‖·‖² of the part of every column in every block, shape (B, K)."""
    return torch.stack([norms(product[indices]) ** 2 for indices in places])


@dataclass
class Probes:
    """The probes of one block, and how many steps they are to take."""

    block: int
    steps: int
    going: Recurrence


def start(
    A: Operator, indices: Tensor, b: int, probes: int, steps: int, source: torch.Generator
) -> Probes:
    """Signs, normalised."""
    return Probes(b, steps, begun(rademacher(A, probes, source, size=len(indices))))


def advance(
    A: Operator, places: Sequence[Tensor], states: Sequence[Probes], follow: Follow
) -> list[Tensor]:
    """Run all recurrences side by side to their ends; `squares_of` of every probe, (B, probes) each."""
    squares: list[list[Tensor]] = [[] for _ in states]
    active, step = list(range(len(states))), 0
    while active:
        products = {i: torch.empty_like(states[i].going.q) for i in active}
        columns = [(states[i].block, states[i].going.q) for i in active]
        for n, taken, product in block_products(A, places, columns):
            i = active[n]
            products[i][:, taken] = product[places[states[i].block]]
            if step == 0:  # a probe is √p times as long as q
                squares[i].append(squares_of(places, product) * len(products[i]))
            follow()
        for i in active:
            states[i].going.take(products.pop(i))
        step += 1
        active = [i for i in active if step < states[i].steps]
        if step % CHECK_EVERY == 0:  # the only look from outside the device
            active = [i for i in active if bool(states[i].going.alive.any())]
    found = [torch.cat(parts, dim=1).cpu().double() for parts in squares]
    for state, square in zip(states, found, strict=True):
        A.require_finite(torch.stack(state.going.diagonals))
        A.require_finite(square)
    return found


def first_moments(state: Probes) -> Array:
    """zᵀA_bb z of every probe."""
    moments: Array = state.going.diagonals[0].double().cpu().numpy() * len(state.going.q)
    return moments
