"""Preconditioned sharpness: the largest eigenvalue of the Hessian as an adaptive optimiser sees it."""

from landscape.analyses.adam import Adam
from landscape.analyses.sharpness.measure import Measure
from landscape.analyses.sharpness.subject import Subject
from landscape.errors import InputError
from landscape.estimators.lanczos import eigenpairs
from landscape.operators.matrix import FunctionOperator

FAMILY = "preconditioned"


def preconditioned_measure(
    subject: Subject, adam: Adam, *, tolerance: float, seed: int
) -> tuple[Measure, list[str]]:
    """The row of λ₁(P^−½ H P^−½), and what did not converge."""
    since = subject.spent()
    problem = subject.problem
    P = adam.preconditioner()
    if not bool((P > 0).all()):
        raise InputError("the preconditioner is zero somewhere: second moment 0 and ε = 0")
    half = P.rsqrt().to(problem.dtype)[:, None]
    A = FunctionOperator(
        lambda block: half * subject.hessian.product(half * block),
        problem.size,
        problem.dtype,
        problem.device,
    )
    top = eigenpairs(A, 1, tolerance=tolerance, seed=seed)
    value, residual = float(top.values[0]), float(top.residuals[0])
    failures = []
    if not bool(top.converged[0]):
        failures.append(
            f"the preconditioned sharpness {value:.6g} has residual {residual:.2g}, above the tolerance "
            f"{tolerance:g} of the largest, after {top.steps} Lanczos steps"
        )
    beta1 = float(adam.beta1[0])
    limits = ", ".join(f"{(2 + 2 * beta1) / ((1 - beta1) * r):.4g}" for r in adam.rates if r > 0)
    row = subject.row(
        since,
        FAMILY,
        "preconditioned sharpness",
        value,
        error=residual,
        error_from="residual",
        definition="λ₁(P^−½ H P^−½), P = (1 − β₁ᵗ)(√(ν/(1 − β₂ᵗ)) + ε)",
        source="Cohen 2022, arXiv:2207.14484",
        scaling="P^−½",
        note=f"Adam after {int(adam.steps.max())} steps"
        + (f"; at its last learning rate unstable above {limits}" if limits else ""),
    )
    return row, failures
