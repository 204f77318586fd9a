"""Which are the extreme eigenvalues of this loss's curvature, and along which directions?"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from landscape.analyses.failures import not_complete, not_converged
from landscape.analyses.operators import in_float64, operator_of, standing
from landscape.analyses.sampling import GROUPS, Sampling, sampling_of
from landscape.batches import digest
from landscape.checkpoint import stages
from landscape.errors import InputError
from landscape.estimators.lanczos import Eigenpairs, Which, eigenpairs, remeasure
from landscape.operators.base import Operator
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import EIGEN_SCHEMA, Cost, atomic, provenance
from landscape.saved import NOT_SAVED, Result

Phase = Literal["eigenvalues"]


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue: a true one lies within `residual`; `vector_error` bounds sin ∠(v, eigenvector)."""

    value: float
    residual: float
    vector_error: float
    converged: bool


@dataclass(frozen=True, eq=False)
class Eigen(Result, schema=EIGEN_SCHEMA):
    """Extreme eigenvalues of a curvature matrix, with the error, cost and provenance of each.

    `complete`, `missing`: whether a search in the rest of the space found nothing better, and how probable
    it is, at most, that it overlooked something. `sampling` is the error that comes from the choice of
    samples, with a cost of its own. `eigenvectors` (P, k) are not part of the JSON; `save_vectors` writes them.
    """

    operator: str
    parameters: int
    loss: float | None
    gradient_norm: float | None
    which: str
    eigenvalues: list[Eigenpair]
    complete: bool
    missing: float
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]
    sampling: Sampling | None = None
    eigenvectors: Tensor | None = field(default=None, repr=False, metadata=NOT_SAVED)

    def save_vectors(self, path: str | Path) -> None:
        """Write values (k,) and vectors (P, k) as tensors, for `read_vectors` or `torch.load`."""
        if self.eigenvectors is None:
            raise InputError("the eigenvectors are not part of a saved result: measure anew")
        values = torch.tensor([pair.value for pair in self.eigenvalues], dtype=torch.float64)
        with atomic(path) as temporary:
            torch.save({"values": values, "vectors": self.eigenvectors.cpu()}, temporary)


def read_vectors(path: str | Path) -> Tensor:
    """Vectors (P, k) that `save_vectors` wrote.

    Raises:
        InputError: the file holds no vectors, or cannot be read.
    """
    try:
        vectors = torch.load(path, weights_only=True, map_location="cpu")["vectors"]
    except Exception as error:
        raise InputError(
            f"{str(path)!r} holds no eigenvectors: name a file that landscape eigen --vectors wrote"
        ) from error
    if not isinstance(vectors, Tensor):
        raise InputError(f"{str(path)!r} holds no eigenvectors but a {type(vectors).__name__}")
    return vectors


def eigen(
    problem: Problem | Operator,
    k: int = 5,
    *,
    which: Which = "largest",
    operator: str = "hessian",
    samples: int | None = None,
    tolerance: float = 1e-4,
    basis: int | None = None,
    block: int = 1,
    max_steps: int | None = None,
    start: Tensor | None = None,
    verify: bool = True,
    groups: int = GROUPS,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
    resume: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **execution: Unpack[Execution],
) -> Eigen:
    """The k extreme eigenvalues and eigenvectors of a curvature matrix.

    Those of a model in float32 are measured once more in float64, so that residuals include all rounding.

    Args:
        problem: the loss, or any operator.
        k, which, tolerance, basis, block, max_steps, start, verify: see `eigenpairs`.
        operator, samples, command, resume, say, execution: see `spectrum`.
        groups: for the error that comes from the choice of samples, see `sampling_error`; 0 leaves it out.
        seed: of every random choice.
        progress: called with (phase, products done, products expected).

    Returns:
        An `Eigen`; its `failures` say what could not be trusted.

    Raises:
        InputError: an unknown operator, or arguments out of range.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([3.0, 1.0, 3.0, -2.0])))
        >>> [round(pair.value, 6) for pair in ls.eigen(A, 2, which="smallest").eigenvalues]
        [-2.0, 1.0]
    """
    A = operator_of(problem, operator, samples=samples, seed=seed, **execution)
    loss, gradient_norm = standing(A)
    exact = in_float64(A)
    options: dict[str, Any] = {"which": which, "tolerance": tolerance, "basis": basis}
    options |= {"block": block, "max_steps": max_steps, "verify": verify, "seed": seed}
    begun = {"start": None if start is None else digest(start)}
    work = {"work": "eigen", "k": k, "samples": samples} | options | begun
    stage = stages(resume, A, work, say)
    pairs = eigenpairs(
        A,
        k,
        start=start,
        progress=None if progress is None else partial(progress, "eigenvalues"),
        resume=stage("eigenvalues"),
        **options,
    )
    cost = pairs.cost
    if exact is not None:
        pairs = remeasure(pairs, exact, tolerance=tolerance, stage=stage("float64"))
        cost = cost + pairs.cost
    found = [
        Eigenpair(*numbers)
        for numbers in zip(
            pairs.values.tolist(),
            pairs.residuals.tolist(),
            pairs.vector_errors.tolist(),
            pairs.converged.tolist(),
            strict=True,
        )
    ]
    return Eigen(
        operator=type(A).__name__,
        parameters=A.shape[0],
        loss=loss,
        gradient_norm=gradient_norm,
        which=which,
        eigenvalues=found,
        complete=pairs.complete,
        missing=pairs.missing,
        failures=_failures(pairs, tolerance, verify),
        cost=cost,
        provenance=provenance(A, seed=seed, command=command)
        | {"residual_dtype": str(pairs.values.dtype).removeprefix("torch.")}
        | {"arguments": {"k": k} | options | begun},
        sampling=sampling_of(A, pairs.vectors, groups=groups, seed=seed),
        eigenvectors=pairs.vectors,
    )


def _failures(pairs: Eigenpairs, tolerance: float, verify: bool) -> list[str]:
    """What could not be trusted, in words."""
    steps = f"after {pairs.steps} Lanczos steps"
    failures = not_converged(
        [f"eigenvalue {i + 1}" for i in range(len(pairs.values))],
        pairs.values.tolist(),
        pairs.residuals.tolist(),
        pairs.converged.tolist(),
        tolerance,
        after=f", {steps}",
    )
    if verify and not pairs.complete:
        failures.append(not_complete(after=f"{steps} "))
    return failures
