"""What the rest of the space holds: the extreme eigenvalues of A outside the span of known vectors."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscape.estimators.probes import gaussian
from landscape.estimators.sums import dots, norms, overlaps
from landscape.operators.base import Operator

Array = NDArray[np.float64]


class Verification:
    """Lanczos on (I − VVᵀ) A (I − VVᵀ) from a random vector, without keeping a basis.

    Only eigenvalues are read off, so that copies which rounding makes do no harm (Greenbaum 1989,
    doi:10.1016/0024-3795(89)90285-1), and memory is that of three vectors for any number of steps.

    Args:
        A: the operator, order P.
        known: the rows V (j, P), orthonormal; they must not change.
        source: of the starting vector.
    """

    def __init__(self, A: Operator, known: Tensor, source: torch.Generator) -> None:
        self.A, self.known = A, known
        self.closed = len(known) == A.shape[0]
        if not self.closed:
            self.q = gaussian(A, 1, source)[:, 0]
            for _ in range(2):
                self._project(self.q)
                self.q /= norms(self.q).to(self.q)
            self.previous, self.beta = torch.zeros_like(self.q), torch.zeros_like(self.q[0])
        self.diagonal: Array = np.empty(0)
        self.couplings: Array = np.empty(0)
        self._seen: list[Tensor] = []

    @property
    def steps(self) -> int:
        return len(self.diagonal) + len(self._seen)

    def step(self) -> None:
        """One more product."""
        w = self.A.product(self.q[:, None])[:, 0]
        self._project(w)
        w.addcmul_(self.previous, self.beta, value=-1)
        alpha = dots(self.q, w)
        w.addcmul_(self.q, alpha.to(w), value=-1)
        self._project(w)
        beta = norms(w)
        self._seen.append(torch.stack([alpha, beta]).double())
        self.previous, self.q, self.beta = self.q, w, beta.to(w)
        w /= torch.where(self.beta > 0, self.beta, 1)

    def look(self) -> tuple[Array, Array]:
        """Ritz values, ascending (m,), and the bounds of their residuals (m,).

        Raises:
            UntrustedResult: a product was not finite.
        """
        if self._seen:
            numbers = torch.stack(self._seen)
            self.A.require_finite(numbers)
            self._seen.clear()
            diagonal, couplings = numbers.cpu().numpy().T
            self.diagonal = np.append(self.diagonal, diagonal)
            self.couplings = np.append(self.couplings, couplings)
            scale = np.maximum.accumulate(np.abs(self.diagonal) + self.couplings)
            gone = np.flatnonzero(self.couplings <= 50 * torch.finfo(self.A.dtype).eps * scale)
            if len(gone):
                self.closed = True
                end = int(gone[0]) + 1
                self.diagonal, self.couplings = self.diagonal[:end], self.couplings[:end]
        if not self.steps:
            return np.empty(0), np.empty(0)
        values, vectors = eigh_tridiagonal(self.diagonal, self.couplings[:-1])
        last = 0.0 if self.closed else self.couplings[-1]
        return values.astype(float), last * np.abs(vectors[-1]).astype(float)

    def missing(self, threshold: float, largest: float, smallest: float) -> float:
        """How probable it is, at most, that A has an eigenvalue above a threshold here.

        After m steps from a uniformly random direction in n dimensions the largest Ritz value is short of
        the largest eigenvalue by more than a share ε of the spread with probability at most
        1.648 √n exp(−√ε (2m − 1)) (Kuczyński & Woźniakowski 1992, doi:10.1137/0613066, for the matrix
        less its smallest eigenvalue).

        Args:
            threshold: above `largest`.
            largest, smallest: extreme Ritz values.
        """
        if self.closed:
            return 0.0
        n = self.A.shape[0] - len(self.known)
        share = (threshold - largest) / max(threshold - smallest, 1e-300)
        return min(1.0, 1.648 * math.sqrt(n) * math.exp(-math.sqrt(share) * (2 * self.steps - 1)))

    def state(self) -> dict[str, Any]:
        """What has to be saved to go on later; after `look`."""
        if self.closed:
            return {"closed": True, "diagonal": self.diagonal, "couplings": self.couplings}
        return {
            "closed": False,
            "q": self.q,
            "previous": self.previous,
            "beta": self.beta,
            "diagonal": self.diagonal,
            "couplings": self.couplings,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.closed = state["closed"]
        self.diagonal, self.couplings = state["diagonal"].numpy(), state["couplings"].numpy()
        if not self.closed:
            self.q, self.previous = state["q"].to(self.known), state["previous"].to(self.known)
            self.beta = state["beta"].to(self.known)

    def _project(self, w: Tensor) -> None:
        """Remove from w, in place, what lies along the known vectors."""
        w.addmv_(self.known.T, overlaps(self.known, w[None])[:, 0].to(w), alpha=-1)
