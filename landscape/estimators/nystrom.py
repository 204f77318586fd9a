"""A positive semi-definite matrix from its products with a few random vectors: randomised Nyström."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.probes import gaussian, generator
from landscape.estimators.sums import wide
from landscape.operators.base import Operator, require_operator, rounding
from landscape.operators.matrix import FunctionOperator
from landscape.results import Cost, Meter

DEFAULT_RANK = 50


@dataclass(frozen=True, eq=False)
class Nystrom:
    """A ≈ U diag(values) Uᵀ, U = `vectors` (P, r) orthonormal, `values` (r,) positive and falling.

    As `preconditioner=` of `ls.solve` it makes the r leading eigenvalues alike. `indefinite` says that the
    random vectors have shown a direction of negative curvature: A is not positive semi-definite.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    indefinite: bool
    cost: Cost

    def inverse(self, damping: float) -> Operator:
        """(U diag(values) Uᵀ + damping·I)⁻¹ as an operator.

        Raises:
            InputError: the damping is not positive.
        """
        if not damping > 0:
            raise InputError(
                f"damping is {damping}: a matrix of low rank has no inverse without one; choose one above 0"
            )
        vectors = self.vectors
        product = partial(between, vectors, 1 / (self.values + damping), 1 / damping)
        return FunctionOperator(product, len(vectors), vectors.dtype, vectors.device)


def nystrom(A: Operator, rank: int = DEFAULT_RANK, *, seed: int = 0) -> Nystrom:
    """Approximate A ⪰ 0 from its products with `rank` random vectors.

    With an orthonormal Ω (P, rank) and Y = AΩ, Â = Y(ΩᵀY)⁻¹Yᵀ, the best approximation of A that agrees
    with it on Ω and leaves A − Â ⪰ 0 (Frangella, Tropp & Udell 2023, arXiv:2110.02820, algorithm 2.1, with
    the shift that keeps it stable). Of an A that is not positive semi-definite this would be
    anything; where ΩᵀY shows it, the positive Ritz values on the range of Y are taken, for `rank` more
    products (Halko, Martinsson & Tropp 2011, arXiv:0909.4061, algorithm 5.3).

    Args:
        A: the operator, order P.
        rank: random vectors, default 50; P of them are enough for everything.
        seed: of the vectors.

    Raises:
        InputError: the rank is not positive.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0])))
        >>> [round(value, 6) for value in ls.nystrom(A, 3).values.tolist()]
        [4.0, 1.0]
    """
    require_operator(A)
    if rank < 1:
        raise InputError(f"rank is {rank}: it must be at least 1")
    meter, size = Meter(A), A.shape[0]
    rank = min(rank, size)
    A.expect(rank, width=rank)
    tests = torch.linalg.qr(gaussian(A, rank, generator(seed))).Q
    images = A.product(tests)
    A.require_finite(images)
    core = _symmetric(tests.T @ images)
    shift = rounding(A) * float(torch.linalg.matrix_norm(images))
    values, basis = torch.linalg.eigh(core)
    indefinite = float(values[0]) < -10 * shift
    if indefinite:
        tests = torch.linalg.qr(images).Q
        values, basis = torch.linalg.eigh(_symmetric(tests.T @ A.product(tests)))
        vectors = tests @ basis.to(tests)
    else:
        kept = values + shift > shift / 2
        root = basis[:, kept] / (values[kept] + shift).sqrt()
        vectors, singular, _ = torch.linalg.svd(
            images @ root.to(images) + shift * (tests @ root.to(tests)), full_matrices=False
        )
        values = singular.to(values) ** 2 - shift
    order = values.argsort(descending=True)
    order = order[values[order] > shift]
    return Nystrom(values[order].to(A.dtype), vectors[:, order], indefinite, meter.read())


def between(vectors: Tensor, inside: Tensor, outside: float, block: Tensor) -> Tensor:
    """U diag(inside) Uᵀ + outside·(I − UUᵀ) times a block, U orthonormal (P, r)."""
    gains = (inside - outside)[:, None]
    return torch.addmm(block, vectors, gains * (vectors.T @ block), beta=outside)


def _symmetric(matrix: Tensor) -> Tensor:
    matrix = matrix.to(wide(matrix))
    return (matrix + matrix.T) / 2
