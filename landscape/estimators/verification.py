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
        if not self.steps:
            return np.empty(0), np.empty(0)
        values, vectors = eigh_tridiagonal(self.diagonal, self.couplings[:-1])
        return values.astype(float), self.couplings[-1] * np.abs(vectors[-1]).astype(float)

    def missing(self, threshold: float, values: Array) -> float:
        """How probable it is, at most, that the matrix has an eigenvalue above a threshold here.

        If λ is one, the component c of the starting vector along its eigenvector becomes
        c Π (λ − θ_i) / β_i after m steps, by the recurrence, and is at most 1. So |c| ≤ Π β_i / (t − θ_i),
        whatever m, and a component of a uniformly random direction in n dimensions is no larger than x
        with probability at most √(2n/π) x. Rounding gives every direction a component of about ε.

        Args:
            threshold: t, above all values.
            values: the Ritz values θ (m,); with a minus for eigenvalues below −t.
        """
        if self.closed:
            return 0.0
        n = self.A.shape[0] - len(self.known)
        component = float(torch.finfo(self.A.dtype).eps)
        if self.couplings.all():
            logarithm = np.log(self.couplings).sum() - np.log(threshold - values).sum()
            component += math.exp(min(float(logarithm), 0.0))
        return min(1.0, math.sqrt(2 * n / math.pi) * component)

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
