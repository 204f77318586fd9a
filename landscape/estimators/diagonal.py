"""The diagonal with a standard error for every entry."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from landscape.estimators.auto import estimate
from landscape.estimators.hutchinson import DIAGONAL
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Meter, Progress, student_quantile

if TYPE_CHECKING:
    from landscape.estimators.lanczos import Eigenpairs

Method = Literal["auto", "hutchinson", "hutch++", "xdiag", "deflated"]
METHODS = ("auto", "hutchinson", "hutch++", "xdiag", "deflated")


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal (P,) with a standard error (P,) for every entry.

    `margin` (P,) is half the width of each entry's interval at `confidence`, entry by entry and not for
    all together. Where `indicator` is true (XDiag), the errors are no more than indicators, and there
    is no margin. `method` is the one that was used, "exact" for products with the identity.
    """

    value: Tensor
    standard_error: Tensor
    probes: int
    converged: bool | None
    cost: Cost
    method: str = "hutchinson"
    margin: Tensor | None = None
    confidence: float = 0.95
    degrees_of_freedom: int | None = None
    indicator: bool = False


def diagonal(
    A: Operator,
    *,
    method: Method = "auto",
    probes: int = 30,
    tolerance: float | None = None,
    confidence: float = 0.95,
    budget: int | None = None,
    deflate: "Eigenpairs | Tensor | None" = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DiagonalEstimate:
    """The diagonal of A with a standard error for every entry.

    The methods are those of `trace`, with the mean of z ∘ PAPz over random signs z, which is unbiased
    (Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003), and the rest of the diagonal
    exact. "xdiag" is XDiag (Epperly, Tropp & Webber 2024, arXiv:2301.07825), whose errors are
    indicators.

    Args and errors: as for `trace`, but the tolerance is on the norm of the standard errors over the
    norm of the diagonal.

    Example:
        >>> import torch, landscape as ls
        >>> ls.diagonal(ls.as_operator(torch.diag(torch.tensor([1.0, 2.0])))).value
        tensor([1., 2.], dtype=torch.float64)
    """
    require_operator(A)
    meter = Meter(A)
    found = estimate(
        A,
        DIAGONAL,
        method,
        methods=METHODS,
        probes=probes,
        tolerance=tolerance,
        confidence=confidence,
        budget=budget,
        deflate=deflate,
        seed=seed,
        progress=progress,
    )
    error = found.standard_error.to(A.dtype)
    return DiagonalEstimate(
        found.value.to(A.dtype),
        error,
        found.probes,
        found.converged,
        meter.read(),
        method=found.method,
        margin=None if found.indicator else error * student_quantile(confidence, found.degrees),
        confidence=confidence,
        degrees_of_freedom=found.degrees,
        indicator=found.indicator,
    )
