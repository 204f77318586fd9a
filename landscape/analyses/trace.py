"""How large is the trace of this loss's curvature?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from landscape.analyses.operators import operator_of, standing
from landscape.analyses.sampling import GROUPS, Sampling, sampling_of
from landscape.checkpoint import stages
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.trace import Method, trace
from landscape.operators.base import Operator
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import TRACE_SCHEMA, Cost, Estimate, provenance
from landscape.saved import Result

Phase = Literal["trace"]


@dataclass(frozen=True, eq=False)
class Trace(Result, schema=TRACE_SCHEMA):
    """The trace of a curvature matrix, with its errors, cost and provenance.

    `estimate` has the standard error and the interval over probes; `sampling` the error that comes from
    the choice of samples, with a cost of its own.
    """

    operator: str
    parameters: int
    loss: float | None
    gradient_norm: float | None
    estimate: Estimate
    failures: list[str]
    provenance: dict[str, Any]
    sampling: Sampling | None = None

    @property
    def cost(self) -> Cost:
        return self.estimate.cost

    def to_dict(self) -> dict[str, Any]:
        """All that is saved, with the schema and the cost."""
        return super().to_dict() | {"cost": asdict(self.cost)}


def trace_of(
    problem: Problem | Operator,
    *,
    operator: str = "hessian",
    samples: int | None = None,
    method: Method = "auto",
    probes: int = 30,
    tolerance: float | None = 0.01,
    confidence: float = 0.95,
    budget: int | None = None,
    groups: int = GROUPS,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
    resume: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **execution: Unpack[Execution],
) -> Trace:
    """The trace of a curvature matrix, by default to a standard error of 1 %.

    Args:
        problem: the loss, or any operator.
        method, probes, tolerance, confidence, budget: see `landscape.trace`.
        operator, samples, command, resume, say, execution: see `spectrum`.
        groups: for the error that comes from the choice of samples, see `sampling_error`; 0 leaves it out.
        seed: of every random choice.
        progress: called with (phase, products done, products expected).

    Returns:
        A `Trace`; its `failures` say what could not be trusted.

    Raises:
        InputError: an unknown operator, or arguments out of range.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([3.0, 1.0, 3.0, -2.0])))
        >>> ls.trace_of(A).estimate.value
        5.0
    """
    A = operator_of(problem, operator, samples=samples, seed=seed, **execution)
    loss, gradient_norm = standing(A)
    options: dict[str, Any] = {"method": method, "probes": probes, "tolerance": tolerance}
    options |= {"confidence": confidence, "budget": budget, "seed": seed}
    stage = stages(resume, A, {"work": "trace", "samples": samples} | options, say)
    found = trace(
        A,
        progress=None if progress is None else partial(progress, "trace"),
        resume=stage("trace"),
        **options,
    )
    any_vector = rademacher(A, 1, generator(seed)) / A.shape[0] ** 0.5
    sampling = sampling_of(A, any_vector, groups=groups, seed=seed)
    if sampling is not None:
        sampling = replace(sampling, eigenvalues=[], top_bias=float("nan"))
    failures = []
    if found.converged is False and tolerance is not None:
        failures.append(
            f"the standard error {found.standard_error:.2g} is above {100 * tolerance:g} % of the trace "
            f"{found.value:.6g} after {found.cost.products:,} products: raise --budget (budget=)"
        )
    return Trace(
        operator=type(A).__name__,
        parameters=A.shape[0],
        loss=loss,
        gradient_norm=gradient_norm,
        estimate=found,
        failures=failures,
        provenance=provenance(A, seed=seed, command=command) | {"arguments": options},
        sampling=sampling,
    )
