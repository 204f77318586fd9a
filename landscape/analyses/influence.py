"""Which training samples raise or lower the loss on a query?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape import batches
from landscape.analyses.operators import OPERATORS, operator_of
from landscape.errors import InputError, UntrustedResult
from landscape.estimators.solve import Choice, Solution, solve
from landscape.loading.subset import class_labels, target_of
from landscape.operators.base import Operator
from landscape.operators.inverse_fisher import InverseFisher
from landscape.operators.products.plan import Execution
from landscape.operators.sample_losses import derivatives_along, losses_and_gradients
from landscape.problem import Problem
from landscape.results import INFLUENCE_SCHEMA, Cost, Meter, provenance
from landscape.saved import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Phase = Literal["inverse products", "training samples"]
INVERSE = "inverse-fisher"
# What helps where a linear system was not solved, by how it ended.
REMEDIES: dict[str, str] = {
    "stagnation": "compute in --dtype float64 (dtype=), or raise --damping (damping=)",
    "least squares": "raise --damping (damping=) above 0",
    "divergence": "raise --damping (damping=), or choose another --method (method=)",
}
MORE = "raise --damping (damping=) or --max-iterations (max_iterations=)"


@dataclass(frozen=True, eq=False)
class Query:
    """The effects of all training samples on one query.

    `effects` (samples,) are the predicted changes of the query's `loss` when a training sample is left
    out: positive for a sample that helps. `target` is the query's class, None where targets are no
    classes. Of the linear system behind them: `residual`, `iterations`, `status`, and whether
    `negative_curvature` was met, see `Solution`.
    """

    position: int
    target: int | None
    loss: float
    effects: Array
    residual: float
    iterations: int
    status: str
    negative_curvature: bool

    def most_helpful(self, count: int = 5) -> list[int]:
        """Positions of the training samples without which the query's loss would rise most."""
        order: list[int] = np.argsort(-self.effects, kind="stable")[:count].tolist()
        return [i for i in order if self.effects[i] > 0]

    def most_harmful(self, count: int = 5) -> list[int]:
        """Positions of the training samples without which the query's loss would fall most."""
        order: list[int] = np.argsort(self.effects, kind="stable")[:count].tolist()
        return [i for i in order if self.effects[i] < 0]


@dataclass(frozen=True, eq=False)
class Influence(Result, schema=INFLUENCE_SCHEMA):
    """What leaving out each training sample would do to the loss of each query.

    `targets` are the classes of the training samples, None where targets are no classes;
    `queries_from_training` says that the queries are training samples themselves. `failures` lists, in
    words, what could not be trusted.
    """

    operator: str
    method: str
    damping: float
    parameters: int
    samples: int
    loss: float
    gradient_norm: float
    targets: list[int] | None
    queries: list[Query]
    queries_from_training: bool
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw the most helpful and harmful samples; see `landscape.plots.influence.plot_influence`."""
        from landscape.plots.influence import plot_influence

        return plot_influence(self.to_dict(), path, **options)


def influence(
    problem: Problem,
    queries: Sequence[int],
    *,
    data: Any = None,
    operator: str | Operator = "gauss-newton",
    samples: int | None = None,
    damping: float = 1e-3,
    method: Choice = "auto",
    rank: int | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
    **execution: Unpack[Execution],
) -> Influence:
    """How the loss of a query would change if a training sample were left out, for all training samples.

    The effect of sample z on query q is ∇ℓ_qᵀ (A + λI)⁻¹ ∇ℓ_z / N: to first order the change of the
    query's loss ℓ_q when the loss terms of z are taken out of the sum over all samples, the sum still
    divided by the N terms of the whole, and the model trained to its new optimum; it is positive for a
    sample that helps (Koh & Liang 2017, arXiv:1703.04730, whose I_up,loss is −N times that). ℓ_q is the
    mean over the query's own loss terms, ℓ_z the sum over those of z.

    The damping λ stands for an L2 penalty ½λ‖θ‖² that the model was trained with beside the problem's
    loss. Where there was none, as for most networks, whose optimum is neither unique nor reached, effects
    are those on the way to an optimum near by (Bae et al. 2022, arXiv:2209.05364), and larger damping
    makes them steadier and more local.

    One solve serves all queries, and one pass over the training data gives every ∇ℓ_zᵀ v as a directional
    derivative: no gradient of a training sample is made, and only vectors of the queries are held.

    Args:
        problem: the loss and its training data.
        queries: positions of the queries, counted from 0 in the order of the data.
        data: where the queries are, any data a `Problem` takes; default: the training data.
        operator: A: "gauss-newton" (default, never negative), "hessian", "fisher", "empirical-fisher", an
            operator of this problem; or an `InverseFisher`, with its own damping, or "inverse-fisher" for
            that of `rank` samples: then nothing is solved.
        samples: targets drawn per term for the Fisher matrix (default: exact).
        damping: λ, at least 0, in units of the loss per parameter².
        method, rank, tolerance, max_iterations: see `ls.solve`; the tolerance is 1e-4 by default.
        seed: of every random choice.
        progress: called with (phase, done, expected).
        command: what was typed, for provenance.
        execution: see `spectrum`.

    Returns:
        An `Influence`; its `failures` say what could not be trusted.

    Raises:
        InputError: no such query, data that come in another order on every pass, a problem from a
            closure, batch statistics (which tie samples to each other), or arguments out of range.
        UntrustedResult: a product or an effect is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)  # the mean of 1, 2 and 6
        >>> x, y = torch.ones(3, 1).double(), torch.tensor([[1.0], [2.0], [6.0]]).double()
        >>> found = ls.influence(ls.Problem(model, "mse", (x, y)), [2], damping=0.0)
        >>> found.queries[0].effects.round(6).tolist()  # without sample 2 its own loss rises
        [-4.0, -2.0, 6.0]
    """
    problem.supervised()
    if problem.uses_batch_statistics():
        raise InputError(
            "with batch statistics in batch normalisation no sample can be left out by itself: use "
            "norm_stats='running'"
        )
    positions = _positions(queries)
    asked = problem if data is None else problem.over(batches.as_batches(data, None, pairs=True))
    if problem.reordered or asked.reordered:
        raise InputError(
            "the data come in another order on every pass, so a position names no sample: pass a loader "
            "with shuffle=False"
        )
    begun = time.perf_counter()
    A = _operator(problem, operator, samples, damping, rank, method, seed, execution)
    built = time.perf_counter() - begun  # the gradients of an inverse Fisher matrix
    meter = Meter(A)
    begun = time.perf_counter()
    losses, gradients = losses_and_gradients(asked, positions)
    passes = built + time.perf_counter() - begun
    if isinstance(A, InverseFisher):
        damping, found = A.damping, None
        inverse = A @ gradients
    else:
        found = solve(
            A,
            gradients,
            damping=damping,
            method=method,
            rank=rank,
            tolerance=tolerance,
            max_iterations=max_iterations,
            seed=seed,
            progress=None
            if progress is None
            else lambda *done: progress("inverse products", *done),
        )
        inverse = found.x
    begun = time.perf_counter()
    along = derivatives_along(
        problem,
        inverse,
        progress=None if progress is None else lambda *done: progress("training samples", *done),
    )
    effects = (along.double() / problem.terms).T.cpu().numpy()
    passes += time.perf_counter() - begun
    if not np.isfinite(effects).all():
        raise UntrustedResult(
            "an effect is not finite: the derivative of a sample overflows; try --dtype float64 (dtype=)"
        )
    cost = meter.read()
    targets, own = _classes(problem), _classes(asked)
    solved = _solved(found, len(positions))
    return Influence(
        operator=type(A).__name__,
        method="woodbury" if found is None else ", ".join(dict.fromkeys(found.method)),
        damping=damping,
        parameters=problem.size,
        samples=problem.samples,
        loss=problem.loss(),
        gradient_norm=float(problem.gradient().double().norm()),
        targets=targets,
        queries=[
            Query(position, None if own is None else own[position], loss, row, *numbers)
            for position, loss, row, numbers in zip(positions, losses, effects, solved, strict=True)
        ],
        queries_from_training=data is None,
        failures=_failures(found, positions),
        cost=replace(
            cost,
            seconds=cost.seconds + built,
            gradient_equivalents=_gradients(cost, passes, problem),
        ),
        provenance=provenance(A, seed=seed, command=command)
        | {"problem": problem.summary(), "query_data_fingerprint": asked.data_fingerprint}
        | {"arguments": {"rank": rank, "tolerance": tolerance, "max_iterations": max_iterations}},
    )


def _positions(queries: Sequence[int]) -> list[int]:
    """Positions as plain numbers, whatever kind of array they came in."""
    try:
        return [index(query) for query in queries]
    except TypeError as error:
        raise InputError(
            f"queries is {queries!r}: give the positions of samples, whole numbers, such as [0, 5]"
        ) from error


def _operator(
    problem: Problem,
    operator: str | Operator,
    samples: int | None,
    damping: float,
    rank: int | None,
    method: str,
    seed: int,
    execution: Execution,
) -> Operator:
    """The matrix that was named, or given."""
    if isinstance(operator, Operator):
        A = operator_of(operator, samples=samples, **execution)
        if isinstance(A, InverseFisher) and rank is not None:
            raise InputError(
                f"rank={rank} cannot be chosen for {A!r}: it has its gradients already"
            )
    elif operator == INVERSE:
        _require_no_products(samples, execution)
        memory = execution.get("memory", "auto")
        A = InverseFisher(problem, rank, damping, seed=seed, memory=memory)
    elif operator in OPERATORS:
        return operator_of(problem, operator, samples=samples, seed=seed, **execution)
    else:
        raise InputError(
            f"unknown operator {operator!r}: choose one of {', '.join([*OPERATORS, INVERSE])}"
        )
    if isinstance(A, InverseFisher) and method != "auto":
        raise InputError(
            f"method={method!r} solves with a matrix, and {operator!r} is an inverse already: leave one of "
            "them out"
        )
    if (A.shape[0], A.dtype, A.device) != (problem.size, problem.dtype, problem.device):
        raise InputError(
            f"{A!r} does not belong to this problem of {problem.size:,} parameters in {problem.dtype}: "
            "size, dtype or device differ"
        )
    return A


def _require_no_products(samples: int | None, execution: Execution) -> None:
    """Refuse what is about products with a matrix where none are made."""
    given = {
        "samples": samples is not None,
        "engine": execution.get("engine", "auto") != "auto",
        "products": execution.get("products") is not None,
        "compile": execution.get("compile", False),
        "plan": execution.get("plan") is not None,
    }
    for name, there in given.items():
        if there:
            raise InputError(
                f"{name} is about products with a matrix, and {INVERSE!r} needs none: leave it out"
            )


def _classes(problem: Problem) -> list[int] | None:
    """The class of every sample, where targets are class indices."""
    with problem.evaluation() as run:  # where a loader's order is always the same
        labels: list[Tensor | None] = [class_labels(target_of(b)) for b in run.batches()]
    known = [label for label in labels if label is not None]
    return torch.cat(known).tolist() if len(known) == len(labels) else None


def _solved(found: Solution | None, count: int) -> list[tuple[float, int, str, bool]]:
    """Residual, iterations, status and negative curvature of every query."""
    if found is None:
        return [(0.0, 0, "exact", False)] * count
    columns = (found.residual.tolist(), found.iterations, found.status, found.negative_curvature)
    return list(zip(*columns, strict=True))


def _gradients(cost: Cost, seconds: float, problem: Problem) -> float:
    """Gradient equivalents of the products and of the passes over the samples."""
    return (cost.gradient_equivalents or 0.0) + seconds / problem.gradient_seconds()


def _failures(found: Solution | None, queries: Sequence[int]) -> list[str]:
    """What could not be trusted, in words."""
    if found is None:
        return []
    failures = []
    bent = [q for q, negative in zip(queries, found.negative_curvature, strict=True) if negative]
    if bent:
        failures.append(
            f"the damped matrix has negative curvature (met for {_listed(bent)}), so this is no minimum and "
            "effects mean little: raise --damping (damping=), or take --operator gauss-newton"
        )
    for query, status, residual in zip(queries, found.status, found.residual.tolist(), strict=True):
        if status != "converged" and status != "negative curvature":
            failures.append(
                f"query {query}: the residual is {residual:.2g}, above the tolerance {found.tolerance:g} "
                f"({status}): {REMEDIES.get(status, MORE)}"
            )
    return failures


def _listed(queries: Sequence[int]) -> str:
    if len(queries) == 1:
        return f"query {queries[0]}"
    return f"queries {', '.join(map(str, queries[:5]))}{' …' if len(queries) > 5 else ''}"
