"""The Neumann series of an inverse, and the largest eigenvalue, which gives its scale."""

import torch
from torch import Tensor

from landscape.estimators.iteration import LIMIT, NEGATIVE, Iteration, Map
from landscape.estimators.krylov import Krylov
from landscape.estimators.probes import generator
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator

LANCZOS_STEPS = 12


class Neumann(Iteration):
    """B⁻¹b = α Σₖ (I − αB)ᵏ b on every column, one term a step; converges for 0 < αB < 2.

    By x ← x + αr, r ← r − αBr. A column stops as soon as its residual shows a curvature rᵀBr that is not
    positive. One whose residual shows that ‖B‖ is above the given bound goes on with α = 1/‖B‖.

    Args:
        bound: on the largest eigenvalue of B; α is its inverse. The others are those of `Iteration`.
    """

    def __init__(
        self,
        product: Map,
        inverse: Map,
        b: Tensor,
        goal: Tensor,
        limits: Tensor,
        size: Tensor,
        *,
        bound: float,
    ) -> None:
        super().__init__(product, inverse, b, goal, limits, size)
        self.bound = torch.full_like(self.norms, bound)

    def step(self) -> None:
        q, length = self.product(self.r), self.norms
        stretch = torch.where(length > 0, norms(q) / length, 0)
        self.size = torch.maximum(self.size, stretch)
        self._stop(self._judge(dots(self.r, q), length**2), NEGATIVE)
        self.bound = torch.maximum(self.bound, stretch)
        alpha = self._update(self.r, torch.where(self.bound > 0, 1 / self.bound, 0), length)
        self.r.addcmul_(q, alpha.to(q), value=-1)
        self._arrive()
        self._stop(self.steps >= self.limits, LIMIT)


def largest_eigenvalue(A: Operator, *, seed: int = 0, steps: int = LANCZOS_STEPS) -> float:
    """The largest eigenvalue, estimated from above by a few Lanczos steps from a random vector.

    The largest sum of a Ritz value and its residual bound (Zhou & Li 2011,
    doi:10.1016/j.laa.2010.06.034). It may lie below the truth by a few per cent, which a series for
    αB < 2 bears.

    Args:
        A: the operator, order P.
        seed: of the vector.
        steps: products.
    """
    steps = min(steps, A.shape[0])
    space = Krylov(A, steps + 1)
    space.begin_afresh(1, generator(seed))
    A.expect(steps)
    for _ in range(steps):
        if space.width:
            space.step()
    ritz = space.look()
    return float((ritz.values + ritz.bounds).max())
