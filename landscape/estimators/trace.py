"""The trace with a standard error and a confidence interval."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from landscape.batches import digest
from landscape.checkpoint import Resume, Tape, stage_of
from landscape.estimators.auto import estimate
from landscape.estimators.hutchinson import TRACE
from landscape.operators.base import Operator, require_operator
from landscape.results import Estimate, Progress, student_quantile

if TYPE_CHECKING:
    from landscape.estimators.lanczos import Eigenpairs

Method = Literal["auto", "hutchinson", "hutch++", "xtrace", "deflated"]
METHODS = ("auto", "hutchinson", "hutch++", "xtrace", "deflated")


def trace(
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
    resume: Resume = None,
) -> Estimate:
    """The trace of A with its standard error and a confidence interval.

    The methods share one identity: tr A = tr QᵀAQ + tr PAP for any orthonormal basis Q, P = I − QQᵀ.
    The first term is exact, by one product for each column; the second is the mean of zᵀPAPz over
    random signs z, unbiased (Hutchinson 1990, doi:10.1080/03610919008812866).

    "hutchinson": no basis. "deflated": the basis is given (`deflate`). "hutch++": the basis spans A times
    random vectors, a third of the products each for these, for the basis and for the second term (Meyer,
    Musco, Musco & Woodruff 2021, arXiv:2010.09649). "xtrace": every random vector in turn is left out of
    the basis and serves the second term (Epperly, Tropp & Webber 2024, arXiv:2301.07825); its error is
    then an indicator, since the k estimates share their vectors: there is no interval. "auto": with a
    tolerance, a pilot of `probes` products chooses plain sampling, a basis grown while that saves
    products, or P products with the identity, whichever should take the fewest; without one, plain
    sampling. It never ends with "xtrace", which has no interval, but chooses by its leave-one-out. A basis
    takes about five blocks of its size in memory; where that is over half of what is free, there is none.

    With a tolerance, the standard error is that of a first stage (`probes` samples; after a basis at
    least 10), which fixes how many samples follow: Stein's two stages (1945,
    doi:10.1214/aoms/1177731088), unlike a stop where the error looks small, keep Student's t distribution.

    Args:
        A: the operator, order P.
        method: as above; "auto" by default.
        probes: number of products (30) besides those for `deflate`; with a tolerance, of the pilot.
        tolerance: the standard error wanted, as a share of the estimate; 0.01 is 1 %.
        confidence: of the interval, 0.95 by default.
        budget: products at most; by default 10,000 with a tolerance.
        deflate: eigenpairs already found, or vectors (P, k): their span is counted exactly, by k
            products. They need not be exact, only fixed before.
        seed: of the probes.
        progress: called with (products done, products expected).
        resume: a file that keeps the products so far, of samples only their values, so that the same call
            goes on after a kill; see `Checkpoint`.

    Returns:
        The estimate; `converged` says whether the tolerance was reached (None without one).

    Raises:
        InputError: an unknown method, fewer than two probes, a tolerance that is not positive, a
            budget smaller than the pilot, or vectors that do not fit.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> print(ls.trace(ls.as_operator(torch.diag(torch.tensor([1.0, 2.0])))))
        3 ± 0
    """
    require_operator(A)
    work: dict[str, Any] = {"method": method, "probes": probes, "tolerance": tolerance}
    vectors = getattr(deflate, "vectors", deflate)
    work |= {
        "budget": budget,
        "deflate": None if vectors is None else digest(vectors),
        "seed": seed,
    }
    stage = stage_of(resume, A, "trace", work)
    meter = stage.meter(A)
    found = estimate(
        A if resume is None else Tape(A, stage, meter),
        TRACE,
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
    value, error = torch.cat([found.value, found.standard_error]).tolist()
    half = error * student_quantile(confidence, found.degrees)
    return Estimate(
        value,
        error,
        found.probes,
        found.converged,
        meter.read(),
        method=found.method,
        lower=None if found.indicator else value - half,
        upper=None if found.indicator else value + half,
        confidence=confidence,
        degrees_of_freedom=found.degrees,
        indicator=found.indicator,
    )
