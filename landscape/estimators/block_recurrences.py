"""Products with the block diagonal of a matrix, and the Lanczos recurrences of all its blocks at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscape.estimators.probes import rademacher
from landscape.estimators.search import CHECK_EVERY
from landscape.estimators.slq import Measure
from landscape.estimators.sums import dots, norms
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
class Recurrences:
    """The three-term recurrences of all probes of one block, as of the last step."""

    block: int
    steps: int
    q: Tensor  # (p, probes), and so on
    previous: Tensor
    beta: Tensor  # (probes,), and so on
    scale: Tensor
    alive: Tensor
    lengths: Tensor
    diagonals: list[Tensor]
    couplings: list[Tensor]


def start(
    A: Operator, indices: Tensor, b: int, probes: int, steps: int, source: torch.Generator
) -> Recurrences:
    q = rademacher(A, probes, source, size=len(indices)).div_(len(indices) ** 0.5)
    zero = torch.zeros_like(q[0])
    alive = torch.ones_like(zero, dtype=torch.bool)
    lengths = torch.zeros_like(alive, dtype=torch.int64)
    return Recurrences(b, steps, q, torch.zeros_like(q), zero, zero, alive, lengths, [], [])


def advance(
    A: Operator, places: Sequence[Tensor], states: Sequence[Recurrences], follow: Follow
) -> list[Tensor]:
    """Run all recurrences side by side to their ends; `squares_of` of every probe, (B, probes) each."""
    squares: list[list[Tensor]] = [[] for _ in states]
    active, step = list(range(len(states))), 0
    while active:
        products = {i: torch.empty_like(states[i].q) for i in active}
        columns = [(states[i].block, states[i].q) for i in active]
        for n, taken, product in block_products(A, places, columns):
            i = active[n]
            products[i][:, taken] = product[places[states[i].block]]
            if step == 0:  # a probe is √p times as long as q
                squares[i].append(squares_of(places, product) * len(states[i].q))
            follow()
        for i in active:
            _step(states[i], products.pop(i))
        step += 1
        active = [i for i in active if step < states[i].steps]
        if step % CHECK_EVERY == 0:  # the only look from outside the device
            active = [i for i in active if bool(states[i].alive.any())]
    found = [torch.cat(parts, dim=1).cpu().double() for parts in squares]
    for state, square in zip(states, found, strict=True):
        A.require_finite(torch.stack(state.diagonals))
        A.require_finite(square)
    return found


def _step(state: Recurrences, w: Tensor) -> None:
    """One Lanczos step of every probe, w = A_bb q; a probe whose residual vanishes has ended."""
    state.lengths += state.alive
    w.addcmul_(state.previous, state.beta, value=-1)
    alpha = dots(state.q, w).to(w)
    w.addcmul_(state.q, alpha, value=-1)
    beta = norms(w).to(w)
    state.scale = torch.maximum(state.scale, alpha.abs() + beta)
    tiny = 10 * torch.finfo(w.dtype).eps
    state.alive = state.alive & (beta > tiny * state.scale)  # relative to the block's own size
    state.beta = torch.where(state.alive, beta, 0)
    state.diagonals.append(alpha)
    state.couplings.append(state.beta)
    state.previous = state.q
    state.q = w.div_(torch.where(state.alive, beta, torch.inf))


def measures(state: Recurrences) -> list[Measure]:
    """Gauss quadrature of the tridiagonal matrix of every probe; the last coupling is the residual's."""
    diagonals = torch.stack(state.diagonals, dim=1).double().cpu().numpy()
    couplings = torch.stack(state.couplings, dim=1).double().cpu().numpy()
    found = []
    for alpha, beta, length in zip(diagonals, couplings, state.lengths.tolist(), strict=True):
        nodes, vectors = eigh_tridiagonal(alpha[:length], beta[: length - 1])
        residuals = beta[length - 1] * abs(vectors[-1])
        found.append(Measure(nodes.astype(float), vectors[0].astype(float) ** 2, residuals))
    return found


def first_moments(state: Recurrences) -> Array:
    """zᵀA_bb z of every probe."""
    moments: Array = state.diagonals[0].double().cpu().numpy() * len(state.q)
    return moments
