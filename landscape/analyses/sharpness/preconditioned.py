"""Preconditioned sharpness: the largest eigenvalue of the Hessian as an adaptive optimiser sees it."""

from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.lanczos import eigenpairs
from landscape.operators.matrix import FunctionOperator


def preconditioned(subject: Subject, options: Options) -> Part:
    """The row of λ₁(P^−½ H P^−½)."""
    problem, adam = subject.problem, subject.adam
    if adam is None:
        raise NotMeasuredError("it needs the optimiser's state (--optimizer, optimizer=)")
    since = subject.spent()
    P = adam.preconditioner()
    if not bool((P > 0).all()):
        raise NotMeasuredError("the preconditioner is zero somewhere: second moment 0 and ε = 0")
    half = P.rsqrt().to(problem.dtype)[:, None]
    A = FunctionOperator(
        lambda block: half * subject.hessian.product(half * block),
        problem.size,
        problem.dtype,
        problem.device,
    )
    top = eigenpairs(A, 1, tolerance=options.tolerance, seed=options.seed)
    value, residual = float(top.values[0]), float(top.residuals[0])
    failures = []
    if not bool(top.converged[0]):
        failures.append(
            f"the preconditioned sharpness {value:.6g} has residual {residual:.2g}, above the tolerance "
            f"{options.tolerance:g} of the largest, after {top.steps} Lanczos steps"
        )
    note = f"Adam after {int(adam.steps.max())} steps"
    beta1, rate = float(adam.beta1[0]), float(adam.rate[0])
    if rate > 0 and bool(((adam.beta1 == beta1) & (adam.rate == rate)).all()):
        limit = (2 + 2 * beta1) / ((1 - beta1) * rate)
        note += f"; at its last learning rate unstable above {limit:.4g}"
    row = subject.row(
        since,
        "preconditioned",
        "preconditioned sharpness",
        value,
        error=residual,
        error_from="residual",
        definition="λ₁(P^−½ H P^−½), P = (1 − β₁ᵗ)(√(ν/(1 − β₂ᵗ)) + ε)",
        source="Cohen 2022, arXiv:2207.14484",
        scaling="P^−½",
        note=note,
    )
    return Part([row], failures=failures)
