"""What could not be trusted about eigenvalues, in words."""

from collections.abc import Sequence


def not_converged(
    names: Sequence[str],
    values: Sequence[float],
    residuals: Sequence[float],
    converged: Sequence[bool],
    tolerance: float,
    *,
    after: str = "",
) -> list[str]:
    """A sentence for every eigenvalue whose residual is too large.

    Example:
        >>> not_converged(["eigenvalue 1"], [5.0], [0.1], [False], 1e-3, after=", after 7 Lanczos steps")
        ['eigenvalue 1 = 5 has residual 0.1, above the tolerance 0.001 of the largest, after 7 Lanczos steps']
    """
    return [
        f"{name} = {value:.6g} has residual {residual:.2g}, above the tolerance {tolerance:g} of the "
        f"largest{after}"
        for name, value, residual, done in zip(names, values, residuals, converged, strict=False)
        if not done
    ]


def not_complete(of: str = "", *, after: str = "") -> str:
    """The sentence where an eigenvalue may have been overlooked."""
    return f"{after}it is not certain that no eigenvalue{of} is missing: raise --max-steps (max_steps=)"
