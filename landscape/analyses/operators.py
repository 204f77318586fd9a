"""Which matrix is meant: an operator by its name, and the same one in float64."""

from typing import Unpack

import torch

from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.empirical_fisher import EmpiricalFisher, GradientCovariance
from landscape.operators.fisher import Fisher
from landscape.operators.gauss_newton import GaussNewton
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution
from landscape.problem import Problem

OPERATORS: dict[str, type[CurvatureOperator]] = {
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "fisher": Fisher,
    "empirical-fisher": EmpiricalFisher,
    "gradient-covariance": GradientCovariance,
}


def operator_of(
    problem: Problem | Operator,
    name: str = "hessian",
    *,
    samples: int | None = None,
    seed: int = 0,
    **execution: Unpack[Execution],
) -> Operator:
    """The operator itself, or the one of that name on the problem; the seed is of drawn targets.

    Raises:
        InputError: an unknown name, or arguments that do not go with it.
    """
    if isinstance(problem, Operator):
        given = [*execution, *(["operator"] if name != "hessian" else [])]
        given += [] if samples is None else ["samples"]
        if given:
            raise InputError(
                f"{', '.join(given)} cannot be chosen for {problem!r}: give them to the operator, or "
                "pass the problem"
            )
        return problem
    if not isinstance(problem, Problem):
        raise InputError(f"this needs a Problem or an operator, not {type(problem).__name__}")
    if name not in OPERATORS:
        raise InputError(f"unknown operator {name!r}: choose one of {', '.join(OPERATORS)}")
    if samples is not None and name != "fisher":
        raise InputError(f"samples={samples} only goes with the operator 'fisher', not {name!r}")
    if name == "fisher":
        return Fisher(problem, samples=samples, seed=seed, **execution)
    return OPERATORS[name](problem, **execution)


def standing(A: Operator) -> tuple[float | None, float | None]:
    """Loss and gradient norm where the matrix is measured; None of one that belongs to no problem."""
    if not isinstance(A, CurvatureOperator):
        return None, None
    return A.problem.loss(), float(A.problem.gradient().double().norm())


def in_float64(A: Operator) -> Operator | None:
    """The same matrix in float64 by double backward, if there is one: some models insist on their type.

    None also where its products are in float64 already. Few products are not worth tracing, and those of
    another engine check the first.
    """
    if not isinstance(A, CurvatureOperator) or A.device.type == "mps":
        return None
    if (A.dtype, A.plan.dtype) == (torch.float64, "float64"):
        return None
    exact = A.astype(torch.float64, engine="double backward")
    try:
        with exact.problem.evaluation() as run:
            run.total(next(run.batches()))[0].backward(inputs=run.leaves)
    except (RuntimeError, TypeError, ValueError):
        return None
    return exact
