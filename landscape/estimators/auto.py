"""One estimate of the trace or the diagonal: the methods, and the pilot that chooses between them."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.checkpoint import Tape
from landscape.errors import InputError
from landscape.estimators.deflated import Complement, orthonormal
from landscape.estimators.exact import exact_diagonal
from landscape.estimators.hutchinson import BLOCK, TRACE, Quantity, in_blocks
from landscape.estimators.hutchpp import (
    FEWEST,
    affordable,
    excess_kurtosis,
    grow_while_it_pays,
    share_left,
)
from landscape.estimators.probes import generator, rademacher, sphere
from landscape.estimators.sketch import Sketch
from landscape.estimators.two_stage import Running, two_stage
from landscape.estimators.xdiag import leave_one_out_diagonals
from landscape.estimators.xtrace import leave_one_out_traces
from landscape.operators.base import Operator
from landscape.results import Progress

if TYPE_CHECKING:
    from landscape.estimators.lanczos import Eigenpairs

BUDGET = 10_000  # products at most, where a tolerance is asked for
LEAST = {"hutch++": 6, "xtrace": 4, "xdiag": 4}  # products from which a method has an error


@dataclass(frozen=True)
class Found:
    """m numbers, their standard errors, and how these are to be read."""

    value: Tensor
    standard_error: Tensor
    probes: int
    degrees: int | None
    converged: bool | None
    method: str
    indicator: bool = False


def estimate(
    A: Operator,
    quantity: Quantity,
    method: str,
    *,
    methods: tuple[str, ...],
    probes: int,
    tolerance: float | None,
    confidence: float,
    budget: int | None,
    deflate: "Eigenpairs | Tensor | None",
    seed: int,
    progress: Progress | None,
) -> Found:
    """What `trace` and `diagonal` share: arguments as there."""
    if method not in methods:
        names = ", ".join(repr(name) for name in methods[:-1])
        raise InputError(f"method is {method!r}: choose {names} or {methods[-1]!r}")
    _check(method, probes, tolerance, confidence)
    if method == "deflated" and deflate is None:
        raise InputError(
            "method 'deflated' needs deflate: the result of ls.eigenpairs, or vectors (P, k); "
            "method 'auto' finds its own"
        )
    known = None if deflate is None else orthonormal(deflate, A)
    pilot = probes + (0 if known is None else known.shape[1])
    if method == "hutch++" and tolerance is not None:
        pilot += FEWEST
    if budget is None:
        budget = pilot if tolerance is None else max(BUDGET, pilot)
    if method not in ("hutchinson", "deflated") and A.shape[0] <= min(pilot, budget):
        A.expect(A.shape[0])
        return _exact(A, quantity, tolerance)
    if budget < pilot:
        raise InputError(f"budget is {budget}: the first {pilot} products alone take more")
    A.expect(pilot)
    run = _Run(A, quantity, probes, tolerance, budget, generator(seed), progress)
    if known is not None:
        run.deflate(known, in_blocks(A, known))
    if method in ("xtrace", "xdiag"):
        return run.leave_one_out(method)
    if method == "hutch++":
        return run.hutchpp()
    found = run.auto() if method == "auto" and tolerance is not None else run.hutchinson()
    if known is not None and found.method == "hutchinson":
        return replace(found, method="deflated")
    return found


class _Run:
    """An estimate under way: the operator and what of it is known exactly."""

    def __init__(
        self,
        A: Operator,
        quantity: Quantity,
        probes: int,
        tolerance: float | None,
        budget: int,
        source: torch.Generator,
        progress: Progress | None,
    ) -> None:
        self.whole, self.A, self.quantity, self.probes = A, A, quantity, probes
        self.tolerance, self.budget, self.source, self.progress = (
            tolerance,
            budget,
            source,
            progress,
        )
        self.start = A.products
        self.offset: Tensor | float = 0.0

    @property
    def left(self) -> int:
        """Products that may still be spent."""
        return self.budget - (self.whole.products - self.start)

    def report(self, expected: float) -> None:
        if self.progress is not None:
            done = self.whole.products - self.start
            self.progress(done, max(done, min(self.budget, math.ceil(done + expected))))

    def deflate(self, basis: Tensor, images: Tensor) -> None:
        """Count what lies along an orthonormal basis exactly; go on with the rest."""
        self.offset = self.offset + self.quantity.inside(basis, images)
        self.A = Complement(self.A, basis)

    def hutchinson(self) -> Found:
        """Hutchinson's estimator from `probes` samples on, as many as the tolerance needs."""
        return self.sample(Running(), self.probes, "hutchinson")

    def hutchpp(self) -> Found:
        """A third of the products each for the sketch, its image and the rest (Meyer et al. 2021).

        With a tolerance, the sketch begins with half of `probes` and grows while that pays.
        """
        fixed = self.tolerance is None
        tests = rademacher(self.A, self.probes // (3 if fixed else 2), self.source)
        products = in_blocks(self.A, tests)
        sketch, pilot = Sketch(self.A), Running()
        sketch.grow(tests, products)
        self.report(self.probes - 2 * sketch.rank)
        if fixed:
            first = self.probes - 2 * sketch.rank
        else:
            pilot.add(self.quantity.sample(tests, products))
            first = self.grow(sketch, self.needed(pilot))
        self.deflate(sketch.basis, sketch.images)
        return self.sample(Running(), first, "hutch++")

    def leave_one_out(self, method: str) -> Found:
        """XTrace or XDiag with `probes` products; doubled until its indicator is within a tolerance."""
        sketch, new = Sketch(self.A), self.probes // 2
        draw = sphere if method == "xtrace" else rademacher
        while True:
            tests = draw(self.A, new, self.source)
            sketch.grow(tests, in_blocks(self.A, tests))
            self.report(0)
            single = (
                leave_one_out_traces(sketch)[None]
                if method == "xtrace"
                else leave_one_out_diagonals(sketch)
            )
            samples = Running()
            samples.add(single)
            needed = 0.0 if self.tolerance is None else self.needed(samples)
            reached = needed <= sketch.rank
            new = min(sketch.rank, self.left // 2)
            order = self.whole.shape[0]
            small = 2 * new >= order <= self.left  # P products are fewer
            rank = sketch.rank + new
            if reached or small or not new or rank >= order or not affordable(self.A, rank):
                break
        if small and not reached:
            return _exact(self.whole, self.quantity, self.tolerance)
        converged = None if self.tolerance is None else reached
        error = (samples.variance() / sketch.rank).sqrt()
        value = self.offset + samples.mean
        return Found(value, error, sketch.rank, None, converged, method, indicator=True)

    def auto(self) -> Found:
        """Plain sampling, or a sketch first, or the identity: whichever a pilot finds the cheapest.

        The pilot's `probes` products serve plain sampling as its first stage, and the sketch. Plain
        sampling goes on where no sketch of that rank can save what it costs: k directions hold at
        most the share √(k tr A⁴) / tr A² of the variance (Cauchy–Schwarz). Otherwise as many products
        again show, by leave-one-out, what deflation leaves; so they do where a few outliers make the
        variance unreliable, even if it looks small enough.
        """
        k = self.probes
        if k < 4 or self.left < 2 * k + FEWEST or not affordable(self.A, k):
            return self.hutchinson()
        tests = rademacher(self.A, k, self.source)
        products = in_blocks(self.A, tests)
        plain = Running()
        plain.add(self.quantity.sample(tests, products))
        needed = self.needed(plain)
        self.report(needed - k)
        kurtosis = excess_kurtosis(products)
        heavy, captured = kurtosis > 1, min(1.0, math.sqrt(k * kurtosis / 12))
        hopeless = needed - k <= k + needed * (1 - captured)
        if needed <= 0.01 * k or (hopeless and not heavy):
            return self.sample(plain, k, "hutchinson")
        sketch = Sketch(self.A)
        sketch.grow(tests, products)
        first = self.grow(sketch, needed)
        share = share_left(sketch, sketch.rank)
        after = max(needed * share, FEWEST)
        if self.whole.shape[0] <= min(needed - k, after, self.left):
            return _exact(self.whole, self.quantity, self.tolerance)
        # Within a tenth of each other the shares say nothing: plain sampling has its first stage.
        if 0.9 * (needed - k) <= after and not (heavy and share < 0.5):
            return self.sample(plain, k, "hutchinson")
        self.deflate(sketch.basis, sketch.images)
        return self.sample(Running(), first, "hutch++")

    def needed(self, samples: Running) -> float:
        self.whole.require_finite(samples.squares.sum())
        assert self.tolerance is not None
        return samples.needed(self.offset, self.tolerance)

    def grow(self, sketch: Sketch, needed: float) -> int:
        """Grow a sketch while it pays; the number of samples in the first stage after it."""
        if sketch.rank < 4:
            return FEWEST
        share = grow_while_it_pays(sketch, needed, self.left - FEWEST, self.source)
        return max(FEWEST, min(math.ceil(needed * share), self.probes, self.left))

    def sample(self, samples: Running, first: int, method: str) -> Found:
        """The mean of fresh samples, after what is known exactly."""

        def draw(count: int) -> Tensor:
            probes = rademacher(self.A, min(count, BLOCK), self.source)

            def make() -> Tensor:
                return self.quantity.sample(probes, self.A.product(probes))

            whole = self.whole
            block = whole.record(make, probes.shape[1]) if isinstance(whole, Tape) else make()
            self.report(count - block.shape[1])
            return block

        while samples.count < first:
            samples.add(draw(first - samples.count))
        if self.tolerance is not None:
            self.whole.require_finite(samples.squares.sum())
        mean = two_stage(samples, draw, self.offset, self.tolerance, samples.count + self.left)
        self.whole.require_finite(mean.value.sum())
        return Found(
            mean.value, mean.standard_error, mean.count, mean.degrees, mean.converged, method
        )


def _exact(A: Operator, quantity: Quantity, tolerance: float | None) -> Found:
    entries = exact_diagonal(A)
    value = entries.sum()[None] if quantity is TRACE else entries
    converged = None if tolerance is None else True
    return Found(value, torch.zeros_like(value), A.shape[0], None, converged, "exact")


def _check(method: str, probes: int, tolerance: float | None, confidence: float) -> None:
    if probes < 2:
        raise InputError(f"probes is {probes}: a standard error needs at least 2")
    if probes < LEAST.get(method, 2):
        raise InputError(f"probes is {probes}: {method} needs at least {LEAST[method]}")
    if tolerance is not None and not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"tolerance is {tolerance}: it must be positive, for example 0.01")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1, such as 0.95")
