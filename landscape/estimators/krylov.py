"""A Krylov space in bounded memory: block Lanczos with thick restarts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.estimators.probes import gaussian
from landscape.estimators.sums import SLICE, norms, overlaps
from landscape.operators.base import Operator

Array = NDArray[np.float64]


class Ritz(NamedTuple):
    """Eigenvalues of the projected matrix, ascending (m,), its eigenvectors (m, m), and for each the
    bound (m,) of ‖Ay − θy‖."""

    values: Array
    vectors: Array
    bounds: Array


class Krylov:
    """Orthonormal vectors V with A V = V T + Q R + E, Q being the next block of directions.

    V, of `size` rows, and Q lie in `basis`; T = VᵀAV and R are small matrices. A thick restart replaces V
    by some of its Ritz vectors, and the relation goes on to hold (Wu & Simon 2000,
    doi:10.1137/S0895479898334605; blocks: Zhou & Saad 2008, doi:10.1007/s11075-008-9192-9). E is what was
    cut off where Q was given up for a fresh block; `cut` bounds its columns.

    Every new block is orthogonalised twice against all of V ("twice is enough": Giraud et al. 2005,
    doi:10.1007/s00211-005-0615-4), and T is made of the coefficients of this, so that kept and locked
    vectors go on to improve.

    Args:
        A: the operator, order P.
        capacity: vectors in V and Q at most.
    """

    def __init__(self, A: Operator, capacity: int) -> None:
        self.A = A
        # On the CPU pages take memory only once they are written to.
        self.basis = torch.empty(capacity, A.shape[0], dtype=A.dtype, device=A.device)
        self.size, self.width = 0, 0  # rows of V, and of Q
        self.matrix: Array = np.zeros((0, 0))  # T
        self.coupling: Array = np.zeros((0, 0))  # R, (rows of Q, last rows of V)
        self.cut: Array = np.zeros(0)
        self.closed = False
        self._seen: list[tuple[int, Tensor]] = []  # not yet read from the device

    @property
    def room(self) -> int:
        """Vectors that there is still memory for."""
        return len(self.basis) - self.size - self.width

    def begin(self, block: Tensor) -> None:
        """Go on from the rows of a block (K, P), after giving up the directions that came next."""
        left = min(len(self.basis), self.A.shape[0]) - self.size
        self.width, self.closed = min(len(block), left), False
        self.coupling = np.zeros((self.width, 0))
        place = self.basis[self.size : self.size + self.width]
        place[:] = block[: self.width]
        for _ in range(2):
            self._remove(place, self.basis[: self.size])
            place[:] = _orthonormal(place, self.width)[0]

    def begin_afresh(self, count: int, source: torch.Generator) -> None:
        """Go on from random directions, orthogonal to V."""
        self.begin(gaussian(self.A, count, source).T)

    def step(self) -> None:
        """Take Q into V, by one product with it, and find the block that comes next."""
        size = self.size + self.width
        known, place = self.basis[:size], self.basis[size : size + self.width]
        place[:] = self.A.product(known[self.size :].T).T
        coefficients = self._remove(place, known) + self._remove(place, known)
        following = min(self.width, self.A.shape[0] - size)  # there may be no more directions
        new, coupling = _orthonormal(place, following)
        # What was lost to rounding is filled up with directions of no meaning, orthogonal all the same.
        place[:following] = new
        self._remove(place[:following], known)
        new, again = _orthonormal(place[:following], following)
        coupling = again.to(coupling) @ coupling
        place[:following] = new
        numbers = torch.cat([coefficients.flatten(), coupling.to(coefficients).flatten()])
        self._seen.append((self.width, numbers))
        self.size, self.width = size, following

    def look(self) -> Ritz:
        """Read T from the device, and solve its eigenvalue problem.

        Raises:
            UntrustedResult: a product was not finite.
        """
        self._read()
        values, vectors = np.linalg.eigh(self.matrix)
        last = vectors[self.size - self.coupling.shape[1] :]
        bounds = np.linalg.norm(self.coupling @ last, axis=0) + self.cut @ np.abs(vectors)
        return Ritz(values, vectors, bounds)

    def restart(self, ritz: Ritz, kept: Sequence[int]) -> None:
        """Keep some Ritz vectors for V, and the next block as it is."""
        self._change(ritz, kept)
        ends = ritz.vectors[self.matrix.shape[0] - self.coupling.shape[1] :, kept]
        self.coupling = self.coupling @ ends
        self.matrix = np.diag(ritz.values[kept])
        self.cut = self.cut @ np.abs(ritz.vectors[:, kept])

    def lock(self, ritz: Ritz, kept: Sequence[int]) -> None:
        """Keep some Ritz vectors for V, and nothing else."""
        self._change(ritz, kept)
        self.matrix, self.cut = np.diag(ritz.values[kept]), ritz.bounds[kept]
        self.coupling, self.width = np.zeros((0, 0)), 0

    def discrepancy(self, source: torch.Generator) -> float:
        """How far A V = V T + Q R is from the truth: the norm of the difference, times random signs.

        Its square is the sum of the squares of all columns, in expectation, for one product.
        """
        signs = torch.randint(0, 2, (self.size,), generator=source).double() * 2 - 1
        last = signs[self.size - self.coupling.shape[1] :].numpy()
        expected = np.append(self.matrix @ signs.numpy(), self.coupling @ last)
        known = self.basis[: self.size + self.width]
        image = self.A.product((known[: self.size].T @ signs.to(known))[:, None])[:, 0]
        image.addmv_(known.T, torch.as_tensor(expected).to(known), alpha=-1)
        self.A.require_finite(image)
        return float(norms(image))

    def state(self) -> dict[str, Any]:
        """What has to be saved to go on later; after `look`."""
        return {
            "basis": self.basis[: self.size + self.width],
            "size": self.size,
            "matrix": self.matrix,
            "coupling": self.coupling,
            "cut": self.cut,
            "closed": self.closed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        rows = state["basis"]
        self.basis[: len(rows)] = rows
        self.size, self.width = state["size"], len(rows) - state["size"]
        self.matrix = state["matrix"].numpy()
        self.coupling = state["coupling"].numpy()
        self.cut = state["cut"].numpy()
        self.closed = state["closed"]

    def _read(self) -> None:
        """Bring the coefficients of the last steps to T; a space that has closed ends there."""
        if not self._seen:
            return
        numbers = torch.cat([numbers for _, numbers in self._seen])
        self.A.require_finite(numbers)
        unread = numbers.cpu().numpy()
        for width, entries in self._seen:
            start = len(self.matrix)
            size = start + width
            part, unread = unread[: len(entries)], unread[len(entries) :]
            columns = part[: size * width].reshape(size, width)
            grown = np.zeros((size, size))
            grown[:start, :start] = self.matrix
            grown[:start, start:], grown[start:, :start] = columns[:start], columns[:start].T
            grown[start:, start:] = (columns[start:] + columns[start:].T) / 2
            self.matrix, self.cut = grown, np.append(self.cut, np.zeros(width))
            self.coupling = part[size * width :].reshape(-1, width)
            small = torch.finfo(self.A.dtype).eps * np.abs(self.matrix).max()
            if np.abs(self.coupling).max(initial=0.0) <= small:
                self.size, self.width, self.closed = size, 0, True
                self.coupling = np.zeros((0, 0))
                break
        self._seen.clear()

    def _change(self, ritz: Ritz, kept: Sequence[int]) -> None:
        """V becomes its Ritz vectors, in place; Q moves behind them."""
        into = torch.as_tensor(ritz.vectors[:, kept].T).to(self.basis)
        for part in self.basis.split(SLICE, dim=1):
            part[: len(kept)] = into @ part[: self.size]
        following = self.basis[self.size : self.size + self.width]
        self.basis[len(kept) : len(kept) + self.width] = following.clone()
        self.size = len(kept)

    def _remove(self, block: Tensor, known: Tensor) -> Tensor:
        """Take from the rows of a block, in place, what lies along known ones; the coefficients."""
        coefficients = overlaps(known, block)
        block.addmm_(coefficients.T.to(block), known, alpha=-1)
        return coefficients


def _orthonormal(block: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows Q (count, P) and coefficients R (count, K) with block = Rᵀ Q.

    With fewer rows than K, what is left out is the smallest part.
    """
    if len(block) == 1:
        length = norms(block[0])
        return (block / torch.where(length > 0, length, 1).to(block))[:count], length.expand(
            count, 1
        )
    q, r = torch.linalg.qr(block.T)
    if count < len(block):
        u, s, v = torch.linalg.svd(r)
        q, r = q @ u[:, :count], (s[:, None] * v)[:count]
    return q.T, r
