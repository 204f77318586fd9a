"""Conjugate gradients, for positive definite systems."""

import torch
from torch import Tensor

from landscape.estimators.iteration import BREAKDOWN, LIMIT, NEGATIVE, Iteration, Map
from landscape.estimators.sums import dots, norms


class ConjugateGradients(Iteration):
    """Preconditioned conjugate gradients on every column.

    (Hestenes & Stiefel 1952, doi:10.6028/jres.049.044; Saad 2003, algorithm 9.1.) x_k minimises
    ½ xᵀBx − bᵀx over the Krylov space. A column stops before a step along a direction whose curvature
    pᵀBp is not positive, up to rounding, and as broken down where the preconditioner is not positive
    definite.
    """

    def __init__(
        self, product: Map, inverse: Map, b: Tensor, goal: Tensor, limits: Tensor, size: Tensor
    ) -> None:
        super().__init__(product, inverse, b, goal, limits, size)
        self.p = self.inverse(self.r).clone()
        self.rho = dots(self.r, self.p)
        self._stop(~(self.rho > 0), BREAKDOWN)

    def step(self) -> None:
        q = self.product(self.p)
        curvature, length = dots(self.p, q), norms(self.p)
        stretch = torch.where(length > 0, norms(q) / length, 0)
        self.size = torch.maximum(self.size, stretch)
        self._stop(self._judge(curvature, length**2), NEGATIVE)
        alpha = self._update(self.p, self.rho / curvature, length)
        self.r.addcmul_(q, alpha.to(q), value=-1)
        self._arrive()
        z = self.inverse(self.r)
        rho = dots(self.r, z)
        self._stop(~(rho > 0), BREAKDOWN)
        self._stop(self.steps >= self.limits, LIMIT)
        beta = torch.where(self.running, rho / self.rho, 0).to(q)
        self.p, self.rho = torch.addcmul(z, self.p, beta), rho
