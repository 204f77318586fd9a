"""How many samples does the spectrum need? As many as bring its errors under a tolerance."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from landscape.analyses.sample_groups import nested, random_groups
from landscape.analyses.spectrum import Phase, Spectrum, spectrum
from landscape.batches import DEFAULT_BATCH_SIZE
from landscape.errors import InputError
from landscape.problem import Problem

FIRST = 256  # samples to begin with
MOST_PROBES = 320


def spectrum_on_enough_data(
    problem: Problem,
    *,
    data_tolerance: float = 0.05,
    first: int = FIRST,
    probes: int = 10,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    **options: Any,
) -> Spectrum:
    """The spectrum on so many samples that it would hardly be another one on all of them.

    It is measured on `first` samples, then on as many as the errors just found call for, in powers of two
    times `first`, until each of these is at most a share `data_tolerance` of its number, or all data are
    used: the standard errors of λ₁ and the trace about the data set, see `sampling_error`; the standard
    error of the trace over probes, for which there are ever more probes, at most 320. Every subset is seeded,
    holds the ones before, and keeps class proportions.

    Args:
        problem: the loss over all the data.
        data_tolerance: largest standard error, as a share of the number, 0.05 for 5 %.
        first: samples to begin with.
        probes: to begin with.
        seed: of subsets, groups, probes and starting vectors.
        progress, options: those of `spectrum`.

    Returns:
        The last spectrum, its cost that of all; `sampling.reached` says whether the tolerance was.

    Raises:
        InputError: a tolerance that is not positive, or what `spectrum` refuses.
    """
    if not (data_tolerance > 0 and math.isfinite(data_tolerance)):
        raise InputError(
            f"data_tolerance is {data_tolerance}: it must be positive, for example 0.05 for 5 %"
        )
    if options.get("resume") is not None:
        raise InputError("resume needs a fixed number of samples: choose it, or leave resume out")
    if first < 2:
        raise InputError(f"first is {first}: an error needs at least 2 samples")
    subsets = nested(problem, first, seed=seed)
    sizes, cost = list(subsets), None
    size = sizes[0]
    while True:
        part = problem if size == sizes[-1] else problem.over(subsets[size])
        if part is not problem:  # rows of many batches make fewer
            part = random_groups(part, -(-size // DEFAULT_BATCH_SIZE), seed=seed) or part
        found = spectrum(
            part,
            probes=probes,
            population=problem.samples,
            proportional=part is not problem,
            seed=seed,
            progress=progress,
            **options,
        )
        cost = found.cost if cost is None else cost + found.cost
        data, random = _errors(found)
        reached = max(data, random) <= data_tolerance
        wanted = _enough(size, sizes, data / data_tolerance)
        more = probes
        if random > data_tolerance:
            more = min(MOST_PROBES, math.ceil(1.2 * probes * (random / data_tolerance) ** 2))
        if reached or (wanted, more) == (size, probes):
            return _told(replace(found, cost=cost), data_tolerance, reached, random, probes)
        size, probes = wanted, max(probes, more)


def _errors(found: Spectrum) -> tuple[float, float]:
    """Errors from data and probes as shares of their numbers, the largest of λ₁'s and the trace's."""
    sampling, trace = found.sampling, found.trace
    assert sampling is not None
    top = found.eigenvalues[0]
    data = 0.0
    if sampling.correction:
        errors = [
            _share(sampling.eigenvalues[0].standard_error, top.value),
            _share(sampling.trace.standard_error, trace.value),
        ]
        data = sampling.correction * max(errors)
    return data, _share(trace.standard_error, trace.value)


def _share(error: float, value: float) -> float:
    """An error as a share; without bound where either is unknown."""
    if math.isnan(error):
        return math.inf
    return error / abs(value) if value else (math.inf if error else 0.0)


def _enough(size: int, sizes: list[int], ratio: float) -> int:
    """The number of samples that makes an error `ratio` times smaller, of those there are."""
    if ratio <= 1:
        return size
    whole = sizes[-1]
    # The squared error falls as 1/n − 1/N.
    needed = 1 / ((1 / size - 1 / whole) / ratio**2 + 1 / whole)
    return next((other for other in sizes if other > size and other >= needed), whole)


def _told(found: Spectrum, tolerance: float, reached: bool, random: float, probes: int) -> Spectrum:
    assert found.sampling is not None
    sampling = replace(found.sampling, tolerance=tolerance, reached=reached)
    failures = list(found.failures)
    if random > tolerance:
        failures.append(
            f"the standard error of the trace over {probes} probes is {100 * random:.2g} %, above the data "
            f"tolerance {100 * tolerance:g} %"
        )
    return replace(found, sampling=sampling, failures=failures)
