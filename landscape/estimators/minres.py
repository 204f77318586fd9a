"""The minimum residual method, for indefinite and for singular systems."""

import torch
from torch import Tensor

from landscape.estimators.iteration import BREAKDOWN, LEAST_SQUARES, LIMIT, Iteration, Map
from landscape.estimators.sums import dots, norms


class MinimumResidual(Iteration):
    """Preconditioned MINRES on every column.

    (Paige & Saunders 1975, doi:10.1137/0712047.) x_k minimises the norm of the residual over the Krylov
    space: the Euclidean norm, or with a preconditioner M⁻¹, which must be positive definite, √(rᵀM⁻¹r).
    A Lanczos process makes B tridiagonal and reflections make that triangular, column by column. A column
    stops as a least-squares solution where ‖Br‖ ≤ tolerance · ‖B‖ ‖r‖: the residual that is left is one
    that B cannot reduce (Choi, Paige & Saunders 2011, doi:10.1137/100787921, which also gives the
    estimate of ‖B‖, the longest column of the tridiagonal matrix).

    Args:
        tolerance: of the least-squares residual; the others are those of `Iteration`.
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
        tolerance: float,
    ) -> None:
        super().__init__(product, inverse, b, goal, limits, size)
        self.tolerance = max(tolerance, 100 * torch.finfo(b.dtype).eps)
        y = self.inverse(self.r)
        square = dots(self.r, y)
        self._stop(~(square > 0), BREAKDOWN)
        beta = torch.where(self.running, square, 0).sqrt()
        # u = Mv and v are the Lanczos vectors, w the directions; old ones are those of the step before.
        self.u, self.v = _over(self.r, beta), _over(y, beta)
        self.old_u = torch.zeros_like(b)
        self.w, self.old_w = torch.zeros_like(b), torch.zeros_like(b)
        self.phi_bar, self.beta = beta, torch.zeros_like(beta)  # β_1 couples to nothing
        # The last reflection (c, s; s, −c), and what it has done to the next rows of the matrix.
        self.c, self.s = -torch.ones_like(beta), torch.zeros_like(beta)
        self.delta_bar, self.epsilon = torch.zeros_like(beta), torch.zeros_like(beta)

    def step(self) -> None:
        # Lanczos: B v_k = β_k u_{k−1} + α u_k + β_{k+1} u_{k+1}.
        q = self.product(self.v).addcmul_(self.old_u, self.beta.to(self.u), value=-1)
        alpha = dots(self.v, q)
        q.addcmul_(self.u, alpha.to(q), value=-1)
        y = self.inverse(q)
        square = dots(q, y)
        self._stop(~(square >= 0), BREAKDOWN)
        beta = torch.where(self.running, square, 0).sqrt()
        column = (self.beta**2 + alpha**2 + beta**2).sqrt()
        self.size = torch.maximum(self.size, column)

        # The last reflection acts on column k of the tridiagonal matrix.
        delta = self.c * self.delta_bar + self.s * alpha
        gamma_bar = self.s * self.delta_bar - self.c * alpha
        # The curvature along the last residual, rᵀBr / ‖r‖² (Liu & Roosta 2022, arXiv:2206.05732).
        self._judge(-self.c * gamma_bar, torch.ones_like(gamma_bar))
        epsilon, self.epsilon = self.epsilon, self.s * beta
        self.delta_bar = -self.c * beta
        # ‖B r_{k−1}‖ / ‖r_{k−1}‖, known before the step that would divide by it.
        root = torch.hypot(gamma_bar, self.delta_bar)
        self._stop(root <= self.tolerance * self.size, LEAST_SQUARES)

        # A new reflection removes β_{k+1} from below the diagonal.
        gamma = torch.hypot(gamma_bar, beta)
        gamma = torch.where(gamma > 0, gamma, 1)
        self.c, self.s = gamma_bar / gamma, beta / gamma
        made_of = epsilon * norms(self.old_w) + delta.abs() * norms(self.w)
        made_of = (norms(self.v) + made_of) / gamma
        w = self.v.addcmul(self.old_w, epsilon.to(q), value=-1)
        w = _over(w.addcmul_(self.w, delta.to(q), value=-1), gamma)
        self._update(w, self.c * self.phi_bar, made_of)
        running = self.running
        self.phi_bar = torch.where(running, self.s * self.phi_bar, 0)
        self.old_u, self.u = self.u, _over(q, beta)
        # r_k = s² r_{k−1} − c φ̄_k u_{k+1}
        shrink = torch.where(running, self.s**2, 1)
        self.r.mul_(shrink.to(q)).addcmul_(self.u, (self.c * self.phi_bar).to(q), value=-1)
        self.old_w, self.w = self.w, w
        self.v, self.beta = _over(y, beta), beta
        self._arrive()
        self._stop(self.steps >= self.limits, LIMIT)


def _over(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Columns divided by their lengths; zero where the length is zero."""
    return vectors * torch.where(lengths > 0, 1 / lengths, 0).to(vectors)
