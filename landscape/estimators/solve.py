"""Linear systems (A + damping·I) x = b, with the residual that is left and why it stopped there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.cg import ConjugateGradients
from landscape.estimators.iteration import (
    CONVERGED,
    NEGATIVE,
    RUNNING,
    STAGNATION,
    Iteration,
    Map,
)
from landscape.estimators.minres import MinimumResidual
from landscape.estimators.preconditioners import Preconditioner, inverse_map
from landscape.estimators.search import CHECK_EVERY
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Meter, Progress

Method = Literal["cg", "minres"]
Status = Literal[
    "converged",
    "iteration limit",
    "negative curvature",
    "breakdown",
    "least squares",
    "stagnation",
]
# In the order of their numbers in iteration.py, where 0 is "running".
_STATUS: tuple[Status, ...] = (
    "iteration limit",
    "converged",
    "iteration limit",
    "negative curvature",
    "breakdown",
    "least squares",
    "stagnation",
)


@dataclass(frozen=True)
class Solution:
    """The solution of (A + damping·I) x = b, column by column.

    `x` has the shape of b. For each of the K columns (one for a vector b): `status` says why it stopped,
    `method` what it stopped in, `iterations` how many there were, and `residual` (K,) is
    ‖b − (A + damping·I)x‖ / ‖b‖ from one more product, in the operator's dtype. `residuals`, of shape
    (most iterations + 1, K), is its history by the recurrences; it stays where a column has stopped.

    - "converged": `residual` is within the tolerance.
    - "iteration limit": there were `max_iterations` of them.
    - "negative curvature": CG met a direction without positive curvature; A + damping·I is not
      positive definite.
    - "least squares": b is outside the range of A + damping·I, to within the tolerance; x minimises the
      residual.
    - "stagnation": rounding in this dtype lets the method get no further.
    - "breakdown": the preconditioner is not positive definite.
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

    @property
    def converged(self) -> bool:
        """Whether every column did."""
        return all(status == "converged" for status in self.status)


def solve(
    A: Operator,
    b: Tensor,
    *,
    damping: float = 0.0,
    method: Literal["auto", "cg", "minres"] = "auto",
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve (A + damping·I) x = b by Krylov methods, all columns of b at once.

    "cg" is for positive definite matrices (Hestenes & Stiefel 1952, doi:10.6028/jres.049.044), "minres"
    also for indefinite and singular ones (Paige & Saunders 1975, doi:10.1137/0712047), with a residual
    that only falls. "auto" begins with CG; a column in which CG meets negative curvature, or diverges, as
    it does where b is outside the range of a singular matrix, goes on with MINRES, from there or from
    zero, whichever leaves less. Both hold about eight blocks of the size of b.

    Rounding keeps the true residual of a method above about eps·‖A‖·‖x‖/‖b‖, in float32 often 1e-5
    or more, while the residual of its recurrence goes on falling. So the true one is measured, and a
    method that stopped too early starts again on what is left, as long as that at least halves it.

    Args:
        A: the operator, order P.
        b: right-hand side (P,), or K of them (P, K), in the operator's dtype and on its device.
        damping: added to the diagonal, at least 0.
        method: "auto", "cg" or "minres".
        preconditioner: what makes the matrix nearly the identity: the diagonal of A, a tensor (P,), such
            as `ls.diagonal(A).value`; `Eigenpairs` of A, whose part of the spectrum is then solved
            exactly; or an operator that multiplies by an approximate inverse of A + damping·I. It must be
            positive definite; the damping is added to a diagonal and to eigenvalues here.
        tolerance: largest accepted ‖b − (A + damping·I)x‖ / ‖b‖.
        max_iterations: of a column, each one product.
        start: first guess, of the shape of b (default: zero).
        progress: called with (products done, products at most).

    Returns:
        The solution, whether or not it converged: look at `status` or `converged`.

    Raises:
        InputError: a shape, dtype or number is out of range, or the preconditioner is not positive.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([2.0, -4.0])))
        >>> solution = ls.solve(A, torch.ones(2, dtype=torch.float64))
        >>> [round(entry, 9) for entry in solution.x.tolist()], solution.method
        ([0.5, -0.25], ('minres',))
    """
    require_operator(A)
    _check(damping, method, tolerance, max_iterations)
    _require_block("b", b, A, (1, 2))
    if start is not None:
        _require_block("start", start, A, (b.ndim,))
        if start.shape != b.shape:
            raise InputError(f"start has shape {tuple(start.shape)}, and b {tuple(b.shape)}")
    inverse = inverse_map(preconditioner, A, damping)
    rhs = b.detach().reshape(A.shape[0], -1)
    meter = Meter(A)
    A.expect(rhs.shape[1] * min(max_iterations, A.shape[0], 50))
    search = _Search(A, rhs, start, damping, inverse, tolerance, max_iterations, progress)
    search.run(method)
    longest = max(map(len, search.histories))
    histories = [history + history[-1:] * (longest - len(history)) for history in search.histories]
    return Solution(
        x=search.x.reshape(b.shape),
        residual=search.residual.cpu(),
        residuals=torch.tensor(histories, dtype=torch.float64).T,
        status=tuple(search.status),
        method=tuple(search.method),
        iterations=tuple(len(history) - 1 for history in search.histories),
        damping=damping,
        tolerance=tolerance,
        cost=meter.read(),
    )


class _Search:
    """Columns, and how far each is: a method works on some of them, then all are measured."""

    def __init__(
        self,
        A: Operator,
        b: Tensor,
        start: Tensor | None,
        damping: float,
        inverse: Map,
        tolerance: float,
        limit: int,
        progress: Progress | None,
    ) -> None:
        self.A, self.b, self.damping, self.inverse = A, b, damping, inverse
        self.tolerance, self.limit, self.progress = tolerance, limit, progress
        self.size = norms(b)
        self.norm = torch.zeros_like(self.size)  # of A + damping·I, a lower bound
        self.x = torch.zeros_like(b) if start is None else start.detach().reshape(b.shape).clone()
        self.x[:, self.size == 0] = 0  # the solution there
        self.begun = A.products
        self.residual = torch.ones_like(self.size)  # relative, (K,)
        self.left = b.clone()  # b − (A + damping·I) x
        if start is not None:
            self._measure(torch.arange(b.shape[1], device=b.device))
        self.residual[self.size == 0] = 0
        self.histories = [[value] for value in self.residual.tolist()]
        self.status: list[Status] = ["iteration limit"] * b.shape[1]
        self.method: list[Method] = ["cg"] * b.shape[1]

    def run(self, method: Literal["auto", "cg", "minres"]) -> None:
        """Work on all columns until each has a reason to stop."""
        queue: list[tuple[Method, list[int]]] = [
            ("cg" if method == "auto" else method, list(range(self.b.shape[1])))
        ]
        while queue:
            name, columns = queue.pop(0)
            place = torch.tensor(columns, device=self.b.device)
            before = self.residual[place].tolist()
            codes = self._work(name, place)
            after = self.residual[place].tolist()
            again, other = [], []
            for column, code, old, new in zip(columns, codes, before, after, strict=True):
                if new <= self.tolerance:  # what is measured counts
                    code = CONVERGED
                elif code == CONVERGED:
                    code = STAGNATION
                self.method[column], self.status[column] = name, _STATUS[code]
                self.histories[column][-1] = new
                stuck = code == STAGNATION
                if stuck and new <= 0.5 * old:
                    again.append(column)
                elif method == "auto" and name == "cg" and (code == NEGATIVE or stuck and new > 1):
                    other.append(column)
            queue += [(name, again)] if again else []
            if other:
                self._forget([column for column in other if self.residual[column] > 1])
                queue.append(("minres", other))

    def _forget(self, columns: list[int]) -> None:
        """Begin some columns anew, from zero."""
        self.x[:, columns], self.left[:, columns] = 0, self.b[:, columns]
        self.residual[columns] = 1

    def _work(self, name: Method, place: Tensor) -> list[int]:
        """Let a method work on what is left of some columns; why each of them stopped."""
        done = [len(self.histories[column]) - 1 for column in place.tolist()]
        limits = self.limit - torch.tensor(done, device=place.device)
        make: Callable[..., Iteration] = ConjugateGradients
        if name == "minres":
            make = partial(MinimumResidual, tolerance=self.tolerance)
        goal = 0.9 * self.tolerance * self.size[place]  # rounding must not tip it over
        left, norm = self.left[:, place], self.norm[place]
        iteration = make(self._product, self.inverse, left, goal, limits, norm)
        x, residual = self.x[:, place], self.residual[place]
        codes = self._advance(iteration, place)
        self._measure(place)
        if name == "minres":  # which never makes rᵀM⁻¹r larger, but by rounding
            now = self.left[:, place]
            worse = dots(now, self.inverse(now)) > dots(left, self.inverse(left))
            self.x[:, place[worse]], self.left[:, place[worse]] = x[:, worse], left[:, worse]
            self.residual[place[worse]] = residual[worse]
            codes = [STAGNATION if w else c for w, c in zip(worse.tolist(), codes, strict=True)]
        return codes

    def _advance(self, iteration: Iteration, place: Tensor) -> list[int]:
        """Step until every column has stopped, looking at them every few steps."""
        codes = [RUNNING] * len(place)
        working = torch.arange(len(place), device=place.device)
        lengths = [len(history) for history in self.histories]
        while True:
            # The only numbers that leave the device.
            for column, code in zip(working.tolist(), iteration.status.tolist(), strict=True):
                codes[column] = code
            stopped, going = iteration.status != RUNNING, iteration.running
            if bool(stopped.any()):
                over = place[working[stopped]]
                self.x[:, over] += iteration.x[:, stopped]
                self.norm[over] = iteration.size[stopped]
                iteration.keep(going)
                working = working[going]
            if not len(working):
                return codes
            looks = []
            for _ in range(CHECK_EVERY):
                iteration.step()
                looks.append(torch.stack([iteration.norms, iteration.steps.to(iteration.norms)]))
                if self.progress is not None:
                    done = self.A.products - self.begun
                    self.progress(done, max(done, (self.limit + 2) * self.b.shape[1]))
            self._note(place[working], torch.stack(looks), lengths)

    def _note(self, columns: Tensor, looks: Tensor, lengths: list[int]) -> None:
        """Add to the histories the steps (steps, 2, columns): norms, and how many steps there were."""
        self.A.require_finite(looks)
        looks[:, 0] /= self.size[columns]
        for column, taken in zip(columns.tolist(), looks.permute(2, 0, 1).tolist(), strict=True):
            history = self.histories[column]
            for norm, count in taken:
                if lengths[column] + count > len(history):  # it had not stopped
                    history.append(norm)

    def _product(self, block: Tensor) -> Tensor:
        return self.A.product(block).add_(block, alpha=self.damping)

    def _measure(self, place: Tensor) -> None:
        """What is left of some columns, by one more product."""
        left = self.b[:, place] - self._product(self.x[:, place])
        self.left[:, place] = left
        size = self.size[place]
        self.residual[place] = torch.where(size > 0, norms(left) / size, 0)
        self.A.require_finite(self.residual)


def _check(damping: float, method: str, tolerance: float, max_iterations: int) -> None:
    if method not in ("auto", "cg", "minres"):
        raise InputError(f"method is {method!r}: choose 'auto', 'cg' or 'minres'")
    if not (damping >= 0 and math.isfinite(damping)):
        raise InputError(
            f"damping is {damping}: it must be 0 or positive; to shift a spectrum down, solve with "
            "A - shift * ls.Identity(A)"
        )
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}: it must lie between 0 and 1, for example 1e-6")
    if max_iterations < 1:
        raise InputError(f"max_iterations is {max_iterations}: it must be at least 1")


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
