"""How far would the numbers be off because they were measured on these samples and no others?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.analyses.sample_groups import random_groups
from landscape.errors import InputError
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.sums import dots
from landscape.operators.base import Operator
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.empirical_fisher import EmpiricalFisher, GradientCovariance
from landscape.results import Cost, Measured, Meter, student_quantile

Array = NDArray[np.float64]
GROUPS = 32  # their number, less one, is that of the degrees of freedom
_NAN = float("nan")


@dataclass(frozen=True)
class Sampling:
    """What the choice of the `samples` adds to the error of each number.

    The standard errors are about the distribution that the samples come from; about a data set of
    `population` samples, of which these are a part without replacement, they are `correction` times
    that. An interval of 95 % is ± `quantile` standard errors, of Student's t for the groups.

    `eigenvalues` follow the vectors that were given. `top_bias` is by how much the first of them lies
    above the population's eigenvalue in expectation, and `gradient_noise` the norm that the gradient of
    so many samples would show if the population's were zero: E‖ĝ‖² = ‖G‖² + gradient_noise².
    `at_random` says whether the groups were dealt at random; otherwise they are the batches as they
    come, whose order must then mean nothing. `tolerance` is what the errors were to stay below as a share,
    and `reached` whether they do, where the data were grown for that.
    """

    samples: int
    population: int | None
    groups: int
    at_random: bool
    quantile: float
    eigenvalues: list[Measured]
    top_bias: float
    trace: Measured
    loss: Measured
    gradient_norm: Measured
    gradient_noise: float
    cost: Cost
    tolerance: float | None = None
    reached: bool | None = None

    @property
    def correction(self) -> float:
        """√(1 − n/N) for n of N samples without replacement; 1 for an unlimited population."""
        if self.population is None:
            return 1.0
        return math.sqrt(max(0.0, 1 - self.samples / self.population))


def sampling_error(
    A: CurvatureOperator,
    vectors: Tensor,
    *,
    probes: int = 10,
    groups: int = GROUPS,
    population: int | None = None,
    proportional: bool = False,
    seed: int = 0,
) -> Sampling:
    """The error of eigenvalues, trace, loss and gradient norm that comes from the choice of the samples.

    The samples are dealt at random into groups. With the eigenvectors fixed, an eigenvalue is to first
    order vᵀHv = Σ a_B / Σ t_B, a ratio over groups B of the curvatures of their terms and the numbers of
    those; its standard error is the delete-one-group jackknife's (Shao & Tu 1995, ch. 2; Kott 2001,
    J. Official Statistics 17(4)), which also holds for groups with different numbers of terms. The
    eigenvalues of the groups themselves would not do: the largest eigenvalue is convex in the matrix, so
    that of a part lies above the whole's in expectation, by `top_bias` in second order,
    Σ_j E(v_jᵀδH v₁)² / (λ₁ − λ_j), in which all directions but the given vectors count as one, with their
    mean eigenvalue.

    The trace is Σ vᵀHv plus zᵀHz over probes z orthogonal to the vectors; the variance over the data is
    that between groups of products of two different probes, so that the error of the probes does not
    enter; the standard error is at least half of that with it.

    The weights are held fixed and the samples must be independent draws. Correlated ones, such as windows
    of one text or augmented copies, make the error larger than this says; on the samples that the weights
    were trained on, what fresh ones would show differs by overfitting besides.

    Args:
        A: a curvature operator; its own data are the samples.
        vectors: orthonormal eigenvectors (P, k), the leading one first.
        probes: for the trace, at least 2.
        groups: at least 2; with n < groups samples there are n.
        population: samples in the data set of which these are a part; None for a distribution.
        proportional: the samples were drawn with class proportions kept, as `--limit` does: the groups
            keep them too.
        seed: of the groups and probes.

    Returns:
        The standard errors, NaN where there is but one batch that cannot be cut; the cost is about that of
        k + probes + 2 products.

    Raises:
        InputError: not a curvature operator, vectors of another length, or numbers out of range.

    Example:
        >>> import torch, landscape as ls
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
        >>> problem = ls.Problem(torch.nn.Linear(1, 1, bias=False), "mse", (x, torch.zeros(4, 1)))
        >>> found = ls.sampling_error(ls.Hessian(problem), torch.ones(1, 1))
        >>> found.eigenvalues[0]  # of 2 x²: mean 15, standard deviation 13.1, over √4
        Measured(value=15.0, standard_error=6.557...)
    """
    _check(A, vectors, probes, groups, population)
    dealt = random_groups(A.problem, groups, proportional=proportional, seed=seed)
    within = A.on(dealt or A.problem)
    meter = Meter(within)
    vectors = vectors.detach().to(A.device, A.dtype)
    z = rademacher(A, probes, generator(seed))
    block = torch.cat([vectors, z - vectors @ (vectors.T @ z)], dim=1)
    sums, noise = _first_order(within, block)
    sums["curvature"], tops, deviation = _second_order(within, block, vectors, sums["terms"])
    k, count = vectors.shape[1], len(sums["terms"])
    total = {name: part.sum(0) for name, part in sums.items()}
    whole = _estimates(A, total, k)
    # Without each group in turn, which leaves nothing of one.
    others = (
        [{name: value * _NAN for name, value in whole.items()}]
        if count == 1
        else [
            _estimates(A, {name: total[name] - part[i] for name, part in sums.items()}, k)
            for i in range(count)
        ]
    )
    parts = {name: np.stack([other[name] for other in others]) for name in whole}
    values, errors = whole["eigenvalues"], _jackknife(parts["eigenvalues"])
    # Var(S + r_z, over the data) from different probes z only: their own errors are independent.
    mixed = _covariance(parts["trace"])
    across = (mixed.sum() - mixed.trace()) / (probes * (probes - 1))
    across = max(across, mixed.mean() / 4)  # few groups may make it far too small
    trace = float(whole["trace"].mean())
    scale = float(A.divisor(total["terms"], total["rows"]))
    centred = not isinstance(A, GradientCovariance)  # the products by batch are not centred there
    rest = (trace - values.sum()) / max(1, A.shape[0] - k)
    bias = _top_bias(values, tops / scale, deviation / scale**2, rest) if centred else _NAN
    return Sampling(
        samples=A.problem.samples,
        population=population,
        groups=count,
        at_random=dealt is not None,
        quantile=student_quantile(0.95, count - 1),
        eigenvalues=[
            Measured(*pair) for pair in zip(values.tolist(), errors.tolist(), strict=True)
        ],
        top_bias=bias,
        trace=Measured(trace, float(np.sqrt(across))),
        loss=Measured(float(whole["loss"]), float(_jackknife(parts["loss"]))),
        gradient_norm=Measured(float(whole["gradient"]), float(_jackknife(parts["gradient"]))),
        gradient_noise=noise,
        cost=meter.read(),
    )


def sampling_of(
    A: Operator,
    vectors: Tensor,
    *,
    groups: int,
    population: int | None = None,
    proportional: bool | None = None,
    seed: int,
) -> Sampling | None:
    """`sampling_error` where there are samples and it is asked for; a loaded problem's `limit` is proportional."""
    if not groups or not isinstance(A, CurvatureOperator):
        return None
    if proportional is None:
        proportional = A.problem.origin.get("limit") == A.problem.samples
    return sampling_error(
        A, vectors, groups=groups, population=population, proportional=proportional, seed=seed
    )


def _first_order(within: CurvatureOperator, block: Tensor) -> tuple[dict[str, Array], float]:
    """For every group its loss and gradient: sums over its terms, and the noise of the mean gradient."""
    about = within.problem
    mean = about.gradient()
    length = mean.double().norm()
    rows, found = [], []
    with about.evaluation() as run:
        for batch in run.batches():
            total, terms = run.total(batch)
            gradient = torch.zeros_like(mean)
            if total.requires_grad:
                parts = torch.autograd.grad(total, run.leaves, allow_unused=True)
                gradient = about.layout.flatten(parts, mean)
            deviation = gradient - terms * mean
            along = dots(mean, gradient) / length if length else length
            head = torch.stack([total.detach().double(), along, dots(deviation, deviation)])
            slopes = dots(block, gradient[:, None])
            found.append(torch.cat([torch.full_like(head[:1], terms), head, slopes]))
            if isinstance(within, EmpiricalFisher):
                with torch.no_grad():
                    rows.append(float(run.rows(batch).numel()))
    table = torch.stack(found).double().cpu().numpy()
    sums = dict(zip(("terms", "loss", "gradient", "noise"), table.T, strict=False))
    noise = _spread(sums.pop("noise")) / sums["terms"].sum() ** 2
    sums |= {"slopes": table[:, 4:], "rows": np.array(rows or [0.0] * len(table))}
    return sums, float(np.sqrt(noise))


def _second_order(
    within: CurvatureOperator, block: Tensor, vectors: Tensor, terms: Array
) -> tuple[Array, Array, float]:
    """For every group uᵀH_B u of the block's columns, and how H_B v₁ varies.

    The latter are the deviations of v_jᵀH_B v₁ (groups, k), and Σ_B ‖δH_B v₁‖², both times the divisor.
    """
    k = vectors.shape[1]
    shares = terms / terms.sum()
    whole, weighted = torch.zeros_like(vectors[:, 0]), torch.zeros_like(vectors[:, 0])

    def measure(place: int, images: Tensor) -> Tensor:
        top = images[:, 0]
        whole.add_(top)
        weighted.add_(top, alpha=shares[place])
        return torch.cat([dots(block, images), dots(vectors, top[:, None]), dots(top, top)[None]])

    found = torch.stack(within.by_batch(block, measure))
    within.require_finite(found)
    table = found.double().cpu().numpy()
    curvatures, tops, squares = table[:, : -k - 1], table[:, -k - 1 : -1], table[:, -1]
    # Σ ‖y_B − w_B y‖² for y = Σ y_B and shares w_B of the terms.
    cross, square = float(dots(weighted, whole)), float(dots(whole, whole))
    deviation = squares.sum() - 2 * cross + (shares**2).sum() * square
    return curvatures, tops - shares[:, None] * tops.sum(0), float(deviation)


def _estimates(A: CurvatureOperator, sums: Mapping[str, Array], k: int) -> dict[str, Array]:
    """Eigenvalues (k,), the trace by each probe, the loss, and the gradient along its mean direction."""
    terms = sums["terms"]
    quotients = sums["curvature"] / A.divisor(float(terms), float(sums["rows"]))
    if isinstance(A, GradientCovariance):  # about the mean gradient
        quotients = quotients - (sums["slopes"] / terms) ** 2
    return {
        "eigenvalues": quotients[:k],
        "trace": quotients[:k].sum() + quotients[k:],
        "loss": sums["loss"] / terms,
        "gradient": sums["gradient"] / terms,
    }


def _covariance(parts: Array) -> Array:
    """The jackknife's covariance (m, m) of estimates, from those without each group (groups, m)."""
    count = len(parts)
    deviations = parts - parts.mean(0)
    if count < 2:
        return np.full((parts.shape[1],) * 2, _NAN)
    covariance: Array = (count - 1) / count * deviations.T @ deviations
    return covariance


def _jackknife(parts: Array) -> Array:
    """The standard error of each estimate."""
    flat = parts.reshape(len(parts), -1)
    error: Array = np.sqrt(np.diagonal(_covariance(flat))).reshape(parts.shape[1:])
    return error


def _spread(squares: Array) -> float:
    """The variance of a sum over groups, from the squared deviations of its summands."""
    count = len(squares)
    return float(squares.sum()) * count / (count - 1) if count > 1 else _NAN


def _top_bias(values: Array, tops: Array, deviation: float, rest: float) -> float:
    """By how much λ₁ of the sample lies above that of the population, to second order.

    Args:
        values: λ (k,).
        tops: v_jᵀδH_B v₁ (groups, k).
        deviation: Σ_B ‖δH_B v₁‖².
        rest: the mean of the other eigenvalues.
    """
    count = len(tops)
    if count < 2:
        return _NAN
    inflation = count / (count - 1)
    known = inflation * (tops**2).sum(0)
    other = max(0.0, inflation * deviation - known.sum())
    gaps = np.append(values[0] - values[1:], values[0] - rest)
    moved = np.append(known[1:], other)
    if (gaps <= np.sqrt(moved)).any():  # the vectors mix: no perturbation
        return _NAN
    return float((moved / gaps).sum())


def _check(
    A: CurvatureOperator, vectors: Tensor, probes: int, groups: int, population: int | None
) -> None:
    if not isinstance(A, CurvatureOperator):
        raise InputError(
            f"{A!r} has no samples: the error of their choice needs an operator of a problem, such as "
            "ls.Hessian(problem)"
        )
    if vectors.ndim != 2 or vectors.shape[0] != A.shape[0] or not vectors.shape[1]:
        raise InputError(
            f"the vectors have shape {tuple(vectors.shape)}: pass eigenvectors ({A.shape[0]}, k)"
        )
    if probes < 2 or groups < 2:
        raise InputError(f"probes={probes} and groups={groups} must both be at least 2")
    if population is not None and population < A.problem.samples:
        raise InputError(
            f"population is {population}: it must be at least the {A.problem.samples} samples measured"
        )
