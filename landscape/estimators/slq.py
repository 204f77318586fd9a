"""Eigenvalue density by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.batches import digest
from landscape.checkpoint import Resume, State, stage_of
from landscape.errors import InputError
from landscape.estimators.lanczos import Eigenpairs
from landscape.estimators.probes import gaussian, generator, rademacher
from landscape.estimators.quadrature import Measure, Tridiagonal, merged, wasserstein
from landscape.estimators.recurrence import Recurrence, begun, restored
from landscape.estimators.search import CHECK_EVERY
from landscape.estimators.smoothing import SmoothDensity, smooth
from landscape.operators.base import Operator, require_operator, rounding
from landscape.results import Cost, Progress

Array = NDArray[np.float64]
STEPS = 50  # announced for steps="auto", and those of a fixed run by default


@dataclass(frozen=True)
class SpectralDensity:
    """A quadrature measure for every probe, and their smoothed average.

    `ritz` holds the quadrature of every probe: the `deflated` eigenvalues, each of mass 1/P, and the
    Ritz values of `bulk`, of mass (P − k)/P together. `grid`, `values` and `standard_error`, each of
    shape (points,), are the density per unit of eigenvalue and its standard error over probes, also found
    in `smoothed` with the kernel's width. `first_moments[i]` is P times the mean of probe i's measure,
    one sample of the trace.

    `distance` is the error of the quadrature, as far as the last steps show it: the Wasserstein-1
    distance between the measures after `steps` and after 5 fewer, averaged over probes, as a share of the
    mean |λ| (0 where the measures are exact); `converged` says whether it is within the tolerance of
    automatic steps (None for a given number). `rounding` is the relative spacing of the numbers in A.
    """

    order: int
    bulk: list[Tridiagonal]
    deflated: Measure
    smoothed: SmoothDensity
    first_moments: Array
    steps: int
    reorthogonalize: bool
    distance: float
    converged: bool | None
    rounding: float
    cost: Cost

    @property
    def grid(self) -> Array:
        return self.smoothed.grid

    @property
    def values(self) -> Array:
        return self.smoothed.values

    @property
    def standard_error(self) -> Array:
        return self.smoothed.standard_error

    @property
    def probes(self) -> int:
        return len(self.bulk)

    @cached_property
    def ritz(self) -> list[Measure]:
        return [self.measure(probe) for probe in range(self.probes)]

    @cached_property
    def earlier(self) -> tuple[list[Measure], list[Measure]]:
        """The measures as they were after half, and after three quarters of the steps; exact ones stay."""
        half, later = (
            [
                self.measure(i, None if probe.exhausted else math.ceil(share * len(probe.diagonal)))
                for i, probe in enumerate(self.bulk)
            ]
            for share in (0.5, 0.75)
        )
        return half, later

    @property
    def zero(self) -> float:
        """Eigenvalues smaller than this cannot be told from zero in the precision of A."""
        return 10 * self.rounding * max(float(abs(m.nodes).max()) for m in self.ritz)

    def measure(self, probe: int, steps: int | None = None) -> Measure:
        """The quadrature of one probe after all Lanczos steps, or as it was after the first few."""
        return merged(self.deflated, self.bulk[probe].measure(steps, self.bulk_mass))

    @property
    def bulk_mass(self) -> float:
        """The share of eigenvalues that are not deflated."""
        return 1 - len(self.deflated.nodes) / self.order


def spectral_density(
    A: Operator,
    *,
    probes: int = 10,
    steps: int | Literal["auto"] = STEPS,
    tolerance: float = 0.02,
    max_steps: int = 500,
    deflate: Eigenpairs | None = None,
    seed: int = 0,
    reorthogonalize: bool = False,
    width: float = 0.005,
    progress: Progress | None = None,
    resume: Resume = None,
) -> SpectralDensity:
    """Density of the eigenvalues of A, all probes advanced together as one block.

    Each Rademacher probe z gives, by `steps` Lanczos steps, a Gauss quadrature of the measure
    Σ (zᵀu_i)²/P δ(λ − λ_i), whose mean over probes is the eigenvalue density. (Golub & Meurant 2010;
    Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974; Ghorbani et al. 2019, arXiv:1901.10159.)

    The three-term recurrence stores no basis: memory is about 5 blocks (P, probes), whatever the number
    of steps. Copies of converged Ritz values that then appear share the weight of the original, so the
    density is right all the same (Greenbaum 1989, doi:10.1016/0024-3795(89)90285-1).

    Known eigenpairs can be deflated: each is an exact atom of mass 1/P, and the probes see only the
    orthogonal complement, of mass (P − k)/P. Probes are then uniform on the sphere of the complement,
    Gaussian vectors projected and normalised: means stay unbiased and every probe has mass 1 exactly.
    (Projected signs have a random length: divided by it they are biased, and without that even the trace
    of the identity has an error.) Pairs that are not exact change functionals in second order of their
    residuals.

    Args:
        A: the operator, order P.
        probes: independent random vectors; the standard error is over these.
        steps: Lanczos steps, at most P; "auto" goes on until the mean Wasserstein-1 distance between
            the measures of 5 steps is under the tolerance, as a share of the mean |λ|. That scale is
            the distance of the spectrum from zero: sums of functions of slope at most 1 then stand
            still within tolerance · Σ|λ|, and a few outliers cannot hide an unresolved bulk, as they
            would if the range were the scale.
        tolerance, max_steps: of automatic steps.
        deflate: eigenpairs of A from `eigenpairs`; those that have converged are deflated.
        seed: of the probes.
        reorthogonalize: keep the basis, steps × P numbers per probe, and orthogonalise against it twice.
        width: of the Gaussians that smooth the density, as a share of the range of the spectrum, see
            `smooth`; `smooth(result.ritz, axis="symlog")` smooths the same measures otherwise.
        progress: called with (products done, products expected).
        resume: a file that keeps the state, so that the same call goes on after a kill; see `Checkpoint`.

    Returns:
        The quadrature of every probe, and the smoothed density with its standard error over probes,
        which does not include the bias of smoothing and of a finite number of steps.

    Raises:
        InputError: fewer than one probe or step, a tolerance that is not positive, or eigenpairs of
            another size.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([1.0, 1.0, 5.0])))
        >>> ls.spectral_density(A, probes=1).ritz[0].nodes.round(6)
        array([1., 5.])
        >>> density = ls.spectral_density(A, probes=1, deflate=ls.eigenpairs(A, 1))
        >>> density.ritz[0].weights.round(6)
        array([0.666667, 0.333333])
    """
    require_operator(A)
    longest = checked_steps(probes, max_steps if steps == "auto" else steps)
    if not tolerance > 0:
        raise InputError(f"tolerance is {tolerance}: it must be positive, for example 0.02")
    known, deflated = _known(A, deflate)
    size, k = A.shape[0], len(deflated.nodes)
    work: dict[str, Any] = {"probes": probes, "steps": steps, "longest": longest, "seed": seed}
    work |= {"tolerance": tolerance, "reorthogonalize": reorthogonalize, "known": digest(known)}
    stage = stage_of(resume, A, "density", work)
    meter = stage.meter(A)
    longest = min(longest, size - k)
    A.expect(probes * (min(longest, STEPS) if steps == "auto" else longest), width=probes)
    share = 1 - k / size
    centre = float(deflated.weights @ abs(deflated.nodes))

    def enough(bulk: list[Tridiagonal]) -> bool:
        return _distance(bulk, share, centre) <= tolerance

    bulk = [Tridiagonal(np.empty(0), np.empty(0))] * probes
    if longest:
        scale = float(abs(deflated.nodes).max(initial=0))
        if stage.state is None:
            going = begun(_start(A, known, probes, seed), scale)
            run = _Probes(A, longest, known, reorthogonalize, going)
        else:
            run = _Probes.restored(A, longest, known, reorthogonalize, stage.state)
            if not run.done:
                stage.forget()
        while not run.done:
            run.advance()
            taken = run.going.steps
            if steps == "auto" and taken > CHECK_EVERY:  # five have nothing to be compared with
                run.done = run.done or enough(run.going.tridiagonals())
            if progress is not None:
                progress(taken * probes, longest * probes)
            stage.offer(meter, run.state, done=run.done)
        bulk = run.going.tridiagonals()
    measures = [merged(deflated, probe.measure(mass=share)) for probe in bulk]
    distance = _distance(bulk, share, centre)
    return SpectralDensity(
        order=size,
        bulk=bulk,
        deflated=deflated,
        smoothed=smooth(measures, width=width),
        first_moments=np.array(
            [probe.diagonal[:1].sum() * (size - k) + deflated.nodes.sum() for probe in bulk]
        ),
        steps=max(len(probe.diagonal) for probe in bulk),
        reorthogonalize=reorthogonalize,
        distance=distance,
        converged=distance <= tolerance if steps == "auto" else None,
        rounding=rounding(A),
        cost=meter.read(),
    )


def checked_steps(probes: int, steps: int) -> int:
    """The number of steps.

    Raises:
        InputError: probes and steps are not both whole numbers of at least 1.
    """
    if not isinstance(steps, (int, np.integer)) or probes < 1 or steps < 1:
        raise InputError(
            f"probes={probes} and steps={steps!r} must both be at least 1 (steps: or 'auto')"
        )
    return steps


def _distance(bulk: list[Tridiagonal], mass: float, centre: float) -> float:
    """Mean distance between the measures now and 5 steps ago, as a share of the mean |λ|.

    The atoms of deflated eigenvalues are the same in both; `centre` is what they add to the mean |λ|.
    """
    moved, size = [], []
    for probe in bulk:
        now, steps = probe.measure(mass=mass), len(probe.diagonal)
        size.append(centre + float(now.weights @ abs(now.nodes)))
        if probe.exhausted:
            moved.append(0.0)
        elif steps <= CHECK_EVERY:
            return float("nan")  # nothing to compare with
        else:
            moved.append(wasserstein(now, probe.measure(steps - CHECK_EVERY, mass)))
    return float(np.sum(moved) / np.sum(size)) if np.sum(moved) else 0.0


def _known(A: Operator, pairs: Eigenpairs | None) -> tuple[Tensor, Measure]:
    """The converged eigenvectors (P, k) in the type of A, and their atoms."""
    size = A.shape[0]
    if pairs is None:
        return torch.empty(size, 0, dtype=A.dtype, device=A.device), Measure(*np.empty((3, 0)))
    if not isinstance(pairs, Eigenpairs):
        raise InputError(
            f"deflate is a {type(pairs).__name__}: pass the result of ls.eigenpairs, whose values are needed"
        )
    if pairs.vectors.shape[0] != size:
        raise InputError(
            f"the eigenvectors to deflate have length {pairs.vectors.shape[0]:,}, but the operator is "
            f"of order {size:,}: pass eigenpairs of the same operator"
        )
    kept = pairs.converged.to(pairs.vectors.device)
    values, residuals = (
        part[pairs.converged].double().cpu().numpy() for part in (pairs.values, pairs.residuals)
    )
    order = np.argsort(values, kind="stable")
    atoms = Measure(values[order], np.full(len(values), 1 / size), residuals[order])
    return pairs.vectors[:, kept].to(A.device, A.dtype), atoms


def _start(A: Operator, known: Tensor, probes: int, seed: int) -> Tensor:
    """Starting vectors (P, probes): signs, or uniform on the sphere of what is left of known vectors."""
    source = generator(seed)
    if not known.shape[1]:
        return rademacher(A, probes, source)
    start = torch.empty(A.shape[0], probes, dtype=A.dtype, device=A.device)
    for column in range(probes):  # one by one, since they are drawn in float64
        start[:, column] = gaussian(A, 1, source)[:, 0]
    for _ in range(2):  # what rounding leaves of the known would grow
        start -= known @ (known.T @ start)
    return start


class _Probes:
    """The probes of a run, orthogonal to the known vectors; they are looked at after every 5 steps."""

    def __init__(
        self, A: Operator, longest: int, known: Tensor, reorthogonalize: bool, going: Recurrence
    ) -> None:
        self.A, self.longest, self.known, self.going = A, longest, known, going
        self.basis = going.q.new_empty(going.q.shape[1], 0, going.q.shape[0])
        self.done = False
        self.orthogonalize = self._orthogonalize if reorthogonalize else None

    def advance(self) -> None:
        """Up to five steps, and the only look from outside the device."""
        going = self.going
        for _ in range(min(CHECK_EVERY, self.longest - going.steps)):
            w = self.A.product(going.q)
            if self.known.shape[1]:
                w -= self.known @ (self.known.T @ w)
            going.take(w, self.orthogonalize)
        self.A.require_finite(going.diagonals[-1])
        self.done = going.steps == self.longest or not bool(going.alive.any())

    def state(self) -> State:
        """What has to be saved to go on later."""
        return self.going.state() | {"basis": self.basis, "done": self.done}

    @classmethod
    def restored(
        cls, A: Operator, longest: int, known: Tensor, reorthogonalize: bool, state: State
    ) -> "_Probes":
        """What goes on from a `state`."""
        state = dict(state)
        basis, done = state.pop("basis").to(A.device), state.pop("done")
        run = cls(A, longest, known, reorthogonalize, restored(state, A.device))
        run.basis, run.done = basis, done
        return run

    def _orthogonalize(self, w: Tensor) -> None:
        earlier = self._remembered()
        for _ in range(2):
            overlaps = torch.einsum("kmp,pk->km", earlier, w)
            w -= torch.einsum("kmp,km->pk", earlier, overlaps)

    def _remembered(self) -> Tensor:
        """The basis (K, steps, P), the present vectors included."""
        steps = self.going.steps
        if steps == self.basis.shape[1]:
            room = min(self.longest, max(STEPS, 2 * steps))
            longer = self.basis.new_empty(len(self.basis), room, self.basis.shape[2])
            longer[:, :steps] = self.basis
            self.basis = longer
        self.basis[:, steps] = self.going.q.T
        return self.basis[:, : steps + 1]
