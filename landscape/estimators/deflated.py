"""Low-rank deflation: exact on a subspace that is known, sampled on its orthogonal complement."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.operators.products.plan import Plan

if TYPE_CHECKING:
    from landscape.estimators.lanczos import Eigenpairs


class Complement(Operator):
    """PAP with P = I − QQᵀ: the matrix without what lies along an orthonormal basis Q (P, k)."""

    def __init__(self, operator: Operator, basis: Tensor) -> None:
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        self.operator, self.basis = operator, basis

    @property
    def plan(self) -> Plan | None:
        return self.operator.plan

    def expect(self, products: int, *, width: int = 1) -> None:
        self.operator.expect(products, width=width)

    def _multiply(self, block: Tensor) -> Tensor:
        return self._project(self.operator.product(self._project(block)))

    def _project(self, block: Tensor) -> Tensor:
        return block - self.basis @ (self.basis.T @ block)

    def _refresh(self) -> None:
        self.operator._refresh()

    def __repr__(self) -> str:
        return repr(self.operator)  # what a message about a product should name


def orthonormal(deflate: "Eigenpairs | Tensor", A: Operator) -> Tensor:
    """An orthonormal basis (P, k) of the span of eigenvectors already found, or of any vectors.

    Raises:
        InputError: the vectors do not fit the operator, or are not finite.
    """
    vectors = deflate if isinstance(deflate, Tensor) else getattr(deflate, "vectors", None)
    if not isinstance(vectors, Tensor):
        raise InputError(
            f"deflate is a {type(deflate).__name__}: pass the result of ls.eigenpairs, or vectors (P, k)"
        )
    vectors = vectors.detach().to(A.device, A.dtype)
    vectors = vectors[:, None] if vectors.ndim == 1 else vectors
    if (
        vectors.ndim != 2
        or vectors.shape[0] != A.shape[0]
        or not 0 < vectors.shape[1] < len(vectors)
    ):
        raise InputError(
            f"deflate has vectors of shape {tuple(vectors.shape)}: the operator needs "
            f"({A.shape[0]}, k) with 0 < k < {A.shape[0]}"
        )
    if not bool(torch.isfinite(vectors).all()):
        raise InputError("deflate has vectors that are not finite: pass converged eigenvectors")
    # Twice: in float32 one pass leaves products of columns at 1e-6 of the largest.
    basis: Tensor = torch.linalg.qr(torch.linalg.qr(vectors).Q).Q
    return basis
