"""Linear systems (A + damping·I) x = b, with the residual that is left and why it stopped there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.cg import ConjugateGradients
from landscape.estimators.columns import Columns, Make, Method, Status
from landscape.estimators.lissa import lissa, require_batches
from landscape.estimators.minres import MinimumResidual
from landscape.estimators.neumann import Neumann, largest_eigenvalue
from landscape.estimators.nystrom import DEFAULT_RANK, nystrom
from landscape.estimators.preconditioners import Preconditioner, inverse_map
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator, require_operator
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.inverse_fisher import InverseFisher
from landscape.results import Cost, Meter, Progress

Choice = Literal["auto"] | Method
METHODS: tuple[str, ...] = ("auto", *get_args(Method))


@dataclass(frozen=True)
class Solution:
    """The solution of (A + damping·I) x = b, column by column.

    `x` has the shape of b. For each of the K columns (one for a vector b): `status` says why it stopped,
    `method` what it stopped in, `iterations` how many there were, and `residual` (K,) is
    ‖b − (A + damping·I)x‖ / ‖b‖ from one more product, in the operator's dtype. `residuals`, of shape
    (most iterations + 1, K), is its history by the recurrences; it stays where a column has stopped (for
    "lissa" only the first and the last). `negative_curvature` says whether a direction p with
    pᵀ(A + damping·I)p ≤ 0, to rounding, was met: the matrix is then not positive definite, whatever the
    status. `standard_error`, of the shape of x, is that of "lissa" over its repeats.

    - "converged": `residual` is within the tolerance.
    - "iteration limit": there were `max_iterations` of them.
    - "negative curvature": the method met such a direction, and cannot go on.
    - "least squares": b is outside the range of A + damping·I, to within the tolerance; x minimises the
      residual.
    - "stagnation": rounding in this dtype lets the method get no further.
    - "breakdown": the preconditioner is not positive definite.
    - "divergence": "lissa" grew without bound: a batch has an eigenvalue above twice the scale or below
      minus the damping.
    """

    x: Tensor
    residual: Tensor
    residuals: Tensor
    status: tuple[Status, ...]
    method: tuple[Method, ...]
    iterations: tuple[int, ...]
    damping: float
    tolerance: float
    cost: Cost
    negative_curvature: tuple[bool, ...]
    standard_error: Tensor | None = None

    @property
    def converged(self) -> bool:
        """Whether every column did."""
        return all(status == "converged" for status in self.status)


def solve(
    A: Operator,
    b: Tensor,
    *,
    damping: float = 0.0,
    method: Choice = "auto",
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    start: Tensor | None = None,
    rank: int | None = None,
    repeats: int | None = None,
    scale: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Solve (A + damping·I) x = b by iteration, all columns of b at once.

    "cg" is for positive definite matrices (Hestenes & Stiefel 1952, doi:10.6028/jres.049.044), "minres"
    also for indefinite and singular ones (Paige & Saunders 1975, doi:10.1137/0712047), with a residual
    that only falls. "auto" begins with CG; a column in which CG meets negative curvature, or diverges, as
    it does where b is outside the range of a singular matrix, goes on with MINRES, from there or from
    zero, whichever leaves less. Both hold about eight blocks of the size of b.

    "nystrom" and "mfac" are CG with a preconditioner made first: a randomised Nyström approximation of A
    (see `ls.nystrom`), or the inverse of a damped empirical Fisher matrix of some samples (see
    `ls.InverseFisher`). "neumann" sums α Σₖ (I − α(A + damping·I))ᵏ b, with 1/α an upper estimate of the
    largest eigenvalue from twelve Lanczos steps; it needs more products than CG. "lissa" takes the same
    steps with one batch of the data each (Agarwal, Bullins & Hazan 2017, arXiv:1602.03943): the mean
    over `repeats`, with a standard error. It takes `max_iterations` steps whatever the tolerance, for its
    steps end in the noise of the batches, and only a pass over all data would show how far off x is:
    there is one, at the end. The standard error is of the noise, not of terms left out by too few
    steps; `residual` is of both.

    Rounding keeps the true residual of a method above about eps·‖A‖·‖x‖/‖b‖, in float32 often 1e-5
    or more, while the residual of its recurrence goes on falling. So the true one is measured, and a
    method that stopped too early starts again on what is left, as long as that at least halves it.

    Args:
        A: the operator, order P.
        b: right-hand side (P,), or K of them (P, K), in the operator's dtype and on its device.
        damping: added to the diagonal, at least 0.
        method: "auto", "cg", "minres", "nystrom", "neumann", "lissa" or "mfac".
        preconditioner: for "auto", "cg" and "minres", what makes the matrix nearly the identity: the
            diagonal of A, a tensor (P,), such as `ls.diagonal(A).value`; `Eigenpairs` of A, whose part of
            the spectrum is then solved exactly; `ls.nystrom(A)`; or an operator that multiplies by an
            approximate inverse of A + damping·I, such as `ls.InverseFisher`. It must be positive
            definite; the damping is added here but to an operator.
        tolerance: largest accepted ‖b − (A + damping·I)x‖ / ‖b‖.
        max_iterations: of a column, each one product; of a repeat of "lissa", each a product with one
            batch.
        start: first guess, of the shape of b (default: zero).
        rank: of "nystrom", default 50, or number of gradients of "mfac", default 256 or all there are.
        repeats: of "lissa", default 4.
        scale: of "lissa", at least the largest eigenvalue of every batch plus the damping; default: an
            upper estimate from eight batches.
        seed: of random vectors, samples and batches.
        progress: called with (products done, products at most); by "lissa" with steps.

    Returns:
        The solution, whether or not it converged: look at `status` or `converged`.

    Raises:
        InputError: a shape, dtype or number is out of range, the preconditioner is not positive, or the
            operator or an argument does not go with the method.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([2.0, -4.0])))
        >>> solution = ls.solve(A, torch.ones(2, dtype=torch.float64))
        >>> [round(entry, 9) for entry in solution.x.tolist()], solution.method
        ([0.5, -0.25], ('minres',))
        >>> solution.negative_curvature
        (True,)
    """
    require_operator(A)
    _check(damping, method, tolerance, max_iterations)
    _check_fitting(method, preconditioner=preconditioner, rank=rank, repeats=repeats, scale=scale)
    _require_block("b", b, A, (1, 2))
    if start is not None:
        _require_block("start", start, A, (b.ndim,))
        if start.shape != b.shape:
            raise InputError(f"start has shape {tuple(start.shape)}, and b {tuple(b.shape)}")
    meter = Meter(A)
    rhs = b.detach().reshape(A.shape[0], -1)
    if method == "lissa":
        options = (max_iterations, 4 if repeats is None else repeats, scale, seed)
        return _by_lissa(A, b, start, damping, tolerance, options, meter, progress)
    if method == "nystrom":
        preconditioner = nystrom(A, DEFAULT_RANK if rank is None else rank, seed=seed)
    elif method == "mfac":
        preconditioner = _fisher_of(A, rank, damping, seed)
    inverse = inverse_map(preconditioner, A, damping)
    methods = _methods(A, method, damping, tolerance, seed)
    A.expect(rhs.shape[1] * min(max_iterations, A.shape[0], 50))
    columns = Columns(A, rhs, start, damping, inverse, tolerance, max_iterations, progress)
    columns.run(methods)
    longest = max(map(len, columns.histories))
    histories = [history + history[-1:] * (longest - len(history)) for history in columns.histories]
    return Solution(
        x=columns.solution().reshape(b.shape),
        residual=columns.residual.cpu(),
        residuals=torch.tensor(histories, dtype=torch.float64).T,
        status=tuple(columns.status),
        method=tuple(columns.method),
        iterations=tuple(len(history) - 1 for history in columns.histories),
        damping=damping,
        tolerance=tolerance,
        cost=meter.read(),
        negative_curvature=tuple(columns.negative.tolist()),
    )


def _methods(
    A: Operator, method: Choice, damping: float, tolerance: float, seed: int
) -> Sequence[tuple[Method, Make]]:
    """What to begin with, and what to go on with where that gives up."""
    minres = partial(MinimumResidual, tolerance=tolerance)
    if method == "auto":
        return [("cg", ConjugateGradients), ("minres", minres)]
    if method == "minres":
        return [("minres", minres)]
    if method == "neumann":
        bound = max(0.0, largest_eigenvalue(A, seed=seed) + damping)
        return [("neumann", partial(Neumann, bound=bound))]
    return [(method, ConjugateGradients)]


def _fisher_of(A: Operator, count: int | None, damping: float, seed: int) -> InverseFisher:
    """The M-FAC inverse of the problem that A belongs to."""
    if not isinstance(A, CurvatureOperator):
        raise InputError(
            f"method='mfac' takes gradients of a problem, and {A!r} belongs to none: pass a curvature "
            "operator, or an ls.InverseFisher as preconditioner="
        )
    if damping == 0:
        raise InputError(
            "method='mfac' inverts a Fisher matrix of few gradients, which needs damping: choose damping= "
            "above 0, or method='cg'"
        )
    return InverseFisher(A.problem, count, damping, seed=seed)


def _by_lissa(
    A: Operator,
    b: Tensor,
    start: Tensor | None,
    damping: float,
    tolerance: float,
    options: tuple[int, int, float | None, int],
    meter: Meter,
    progress: Progress | None,
) -> Solution:
    """The stochastic series, its mean measured by one product with all the data."""
    batches = require_batches(A)
    steps, repeats, scale, seed = options
    rhs = b.detach().reshape(A.shape[0], -1)
    size = norms(rhs)

    def measured(x: Tensor) -> tuple[Tensor, Tensor]:
        """(A + damping·I) x, and the relative residual (K,)."""
        image = A.product(x).add_(x, alpha=damping)
        residual = torch.where(size > 0, norms(rhs - image) / size, 0)
        A.require_finite(residual)
        return image, residual

    guess, begun = torch.zeros_like(rhs), (size > 0).to(size)
    if start is not None:
        guess = start.detach().reshape(rhs.shape) * (size > 0)  # zero is what solves for zero
        _, begun = measured(guess)
    found = lissa(
        batches,
        rhs,
        damping=damping,
        start=guess,
        steps=steps,
        repeats=repeats,
        scale=scale,
        seed=seed,
        progress=progress,
    )
    image, residual = measured(found.x)
    short: Status = "divergence" if found.diverged else "iteration limit"
    status: list[Status] = ["converged" if r <= tolerance else short for r in residual.tolist()]
    name: Method = "lissa"
    curvature = dots(found.x, image)
    rounding = torch.finfo(image.dtype).eps * norms(found.x) * norms(image)
    return Solution(
        x=found.x.reshape(b.shape),
        residual=residual.cpu(),
        residuals=torch.stack([begun, residual]).double().cpu(),
        status=tuple(status),
        method=(name,) * len(status),
        iterations=(steps,) * len(status),
        damping=damping,
        tolerance=tolerance,
        cost=meter.read(),
        negative_curvature=tuple((curvature < -rounding).tolist()),
        standard_error=found.standard_error.reshape(b.shape),
    )


def _check(damping: float, method: str, tolerance: float, max_iterations: int) -> None:
    if method not in METHODS:
        raise InputError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    if not (damping >= 0 and math.isfinite(damping)):
        raise InputError(
            f"damping is {damping}: it must be 0 or positive; to shift a spectrum down, solve with "
            "A - shift * ls.Identity(A)"
        )
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}: it must lie between 0 and 1, for example 1e-6")
    if max_iterations < 1:
        raise InputError(f"max_iterations is {max_iterations}: it must be at least 1")


def _check_fitting(method: str, **given: object) -> None:
    """Refuse arguments that do not go with the method."""
    fitting = {
        "preconditioner": ("auto", "cg", "minres"),
        "rank": ("nystrom", "mfac"),
        "repeats": ("lissa",),
        "scale": ("lissa",),
    }
    for name, value in given.items():
        if value is not None and method not in fitting[name]:
            raise InputError(
                f"{name} goes with method {' or '.join(map(repr, fitting[name]))}, not {method!r}: leave "
                "one of them out"
            )
        if isinstance(value, (int, float)) and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}: it must be positive and finite")


def _require_block(name: str, block: Tensor, A: Operator, dimensions: tuple[int, ...]) -> None:
    """Refuse what is no block of columns for A."""
    size = A.shape[0]
    if not isinstance(block, Tensor):
        raise InputError(f"{name} is a {type(block).__name__}: pass a torch tensor")
    if block.ndim not in dimensions or block.shape[0] != size or not block.numel():
        shapes = " or ".join({1: f"({size},)", 2: f"({size}, K)"}[n] for n in dimensions)
        raise InputError(f"{name} has shape {tuple(block.shape)}: it must be {shapes}")
    if block.dtype != A.dtype or block.device != A.device:
        raise InputError(
            f"{name} is {block.dtype} on {block.device}, and the operator {A.dtype} on {A.device}: use "
            f"{name}.to({A.dtype}).to({str(A.device)!r})"
        )
    if not bool(torch.isfinite(block).all()):
        raise InputError(f"{name} holds a number that is not finite")
