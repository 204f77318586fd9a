"""A randomized range finder that grows, with the small matrices that leave-one-out needs."""

import torch
from torch import Tensor

from landscape.estimators.hutchinson import in_blocks
from landscape.estimators.probes import gaussian, generator
from landscape.estimators.sums import wide
from landscape.operators.base import Operator


class Sketch:
    """An orthonormal basis Q of the range of AΩ, for k test vectors Ω, and AQ.

    Each test vector costs two products. `tests` Ω, `basis` Q and `images` AQ are (P, k); AΩ = QR. The
    small matrices `factor` R, `overlap` QᵀΩ and `inner` QᵀAQ are (k, k) in float64. Everything
    about leaving one test vector out follows from these (Epperly, Tropp & Webber 2024,
    arXiv:2301.07825), since A is symmetric.
    """

    def __init__(self, A: Operator) -> None:
        self.A = A
        self.tests = torch.empty(A.shape[0], 0, dtype=A.dtype, device=A.device)
        self.basis, self.images = self.tests.clone(), self.tests.clone()
        self.factor = torch.empty(0, 0, dtype=wide(self.tests), device=A.device)
        self.overlap, self.inner = self.factor.clone(), self.factor.clone()

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def grow(self, tests: Tensor, products: Tensor) -> None:
        """Add test vectors (P, n) and A times these; n more products."""
        new = self._orthonormalise(products)
        old, n = self.rank, tests.shape[1]
        basis = torch.cat([self.basis, new], 1)
        images = torch.cat([self.images, in_blocks(self.A, new)], 1)
        factor = torch.zeros(old + n, old + n, dtype=self.factor.dtype, device=tests.device)
        factor[:old, :old] = self.factor
        factor[:old, old:] = self.basis.T @ products
        factor[old:, old:] = (new.T @ products).triu()
        self.tests = torch.cat([self.tests, tests], 1)
        self.basis, self.images, self.factor = basis, images, factor
        self.overlap = (basis.T @ self.tests).to(factor)
        inner = (basis.T @ images).to(factor)
        self.inner = (inner + inner.T) / 2
        self.A.require_finite(self.inner)

    def _orthonormalise(self, products: Tensor) -> Tensor:
        """Orthonormal columns orthogonal to Q that span, with Q, the products.

        Twice, so that they are orthogonal to Q even where the products lie in its span. Noise at
        rounding level gives every column a direction of its own where nothing else is left.
        """
        if self.rank:
            scale = torch.finfo(products.dtype).eps * products.norm(dim=0).max()
            scale = torch.where(scale > 0, scale, 1.0) / len(products) ** 0.5
            products = products + scale * gaussian(self.A, products.shape[1], generator(self.rank))
        for _ in range(2):
            products = torch.linalg.qr(products - self.basis @ (self.basis.T @ products)).Q
        return products

    def left_out(self, size: int) -> Tensor:
        """S (size, size): Q_i Q_iᵀ = Q(I − s_i s_iᵀ)Qᵀ for the basis without test vector i.

        Columns of R⁻ᵀ, of unit length: s_i is orthogonal to every column of R but the i-th. Where A
        has a lower rank than the sketch, R is singular; a diagonal lifted to rounding level then picks
        directions outside the range, which cost the estimate nothing.
        """
        factor = self.factor[:size, :size]
        if not size:
            return factor
        diagonal = factor.diagonal()
        floor = torch.finfo(self.A.dtype).eps * factor.abs().max()
        floor = torch.where(floor > 0, floor, 1.0)
        lifted = torch.where(diagonal.abs() < floor, floor, diagonal)
        triangle = factor - diagonal.diag() + lifted.diag()
        eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(triangle, eye, upper=True).T
        return inverse / torch.linalg.vector_norm(inverse, dim=0)

    def residual_forms(self, size: int) -> tuple[Tensor, Tensor]:
        """μ_iᵀAμ_i and ‖Q_iᵀω_i‖² (k,), μ_i = (I − Q_i Q_iᵀ)ω_i, Q_i from `size` test vectors without i.

        μᵀAμ = ωᵀAω − 2xᵀQᵀAω + xᵀHx with x = Q_iᵀω, and QᵀAω = Qᵀ(QR)e_i is a column of R.
        """
        products, inner = self.factor[:size], self.inner[:size, :size]
        x = self.overlap[:size].clone()
        s = self.left_out(size)
        x[:, :size] -= s * (s * x[:, :size]).sum(0)
        whole = (self.overlap * self.factor).sum(0)
        forms = whole - 2 * (x * products).sum(0) + (x * (inner @ x)).sum(0)
        return forms, x.square().sum(0)
