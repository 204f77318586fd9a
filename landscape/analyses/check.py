"""Can this model be measured, how, at what cost, and does another library agree?"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import torch

from landscape.analyses.forecast import (
    BUDGET,
    COMPARED,
    ITERATIONS,
    Forecast,
    comparison_seconds,
    forecasts,
    pace,
)
from landscape.analyses.operators import in_float64
from landscape.analyses.second_opinion import SecondOpinion, second_opinion
from landscape.errors import InputError
from landscape.estimators.lanczos import Eigenpairs, extreme_eigenpairs, remeasure
from landscape.handling import special_modules
from landscape.operators.base import rounding
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import Cost, Meter, provenance
from landscape.saved import Result

SCHEMA = "landscape/check/1"
Phase = Literal["eigenvalues", "PyHessian"]
BLOCKS = 24  # rows of the table of blocks; more are cut down to their parents

TOLERANCE = 1e-4  # accepted residual of an eigenvalue, as a share of the largest
LEAST_SAMPLES = 16  # to compare on


@dataclass(frozen=True)
class Block:
    """A part of the model, by the beginning of its names.

    `parameters` are those selected and `left_out` those that are not: frozen, or not asked for.
    """

    name: str
    kind: str
    tensors: int
    parameters: int
    left_out: int


@dataclass(frozen=True)
class Check(Result, schema=SCHEMA):
    """What was found about a problem before anything long is run.

    Attributes:
        origin: the file, its kind, the data, and the choices that were made.
        problem: the summary of the problem, as in every provenance.
        blocks: the parts of the model and what of them is selected.
        loss, gradient_norm: at the model's weights.
        repeatable: largest difference between two products with the same vector, as a share of their size;
            0 means to the last bit.
        symmetry: |uᵀHv − vᵀHu| as a share of ‖Hv‖‖u‖, for two random vectors.
        special: (phrase, number of modules, some of their names) for modules treated in a special way.
        engine, why: how the commands compute products, and the reason.
        forecasts: the cost of the commands on this machine.
        compared_samples: how many of the samples the eigenvalues are of.
        eigenvalues, residuals: of largest magnitude, ours.
        opinion: what PyHessian says about them; None if it was not asked.
        failures: in words, what could not be trusted.
    """

    origin: dict[str, Any]
    problem: dict[str, Any]
    blocks: list[Block]
    loss: float
    gradient_norm: float
    repeatable: float
    symmetry: float
    special: list[tuple[str, int, list[str]]]
    engine: str
    why: str
    forecasts: list[Forecast]
    compared_samples: int
    eigenvalues: list[float]
    residuals: list[float]
    opinion: SecondOpinion | None
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]


def check(
    problem: Problem,
    *,
    top: int = COMPARED,
    opinion: bool = True,
    iterations: int = ITERATIONS,
    budget: float = BUDGET,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    ready: Callable[["Check"], None] | None = None,
    command: str | None = None,
    **execution: Unpack[Execution],
) -> Check:
    """Look a problem over: what is in it, whether it can be trusted, what it will cost.

    Args:
        problem: the loss.
        top: number of eigenvalues of largest magnitude to compare with PyHessian's.
        opinion: whether to ask PyHessian at all.
        iterations: of its power iteration, per eigenvalue.
        budget: seconds that the comparison may take, roughly; on a slow problem the eigenvalues are those
            of its first samples only.
        seed: of all vectors.
        progress: called with (phase, products done, products at most).
        ready: called with everything but the eigenvalues before these are looked for.
        command: the command line, for provenance.
        execution: engine, memory, products, compile and plan of `CurvatureOperator`.

    Raises:
        InputError: top is out of range, or `execution` is.
        UntrustedResult: a product is not finite.
    """
    if not 1 <= top <= problem.size:
        raise InputError(f"top is {top}: it must lie between 1 and the order {problem.size}")
    H = Hessian(problem, **execution)
    meter = Meter(H)
    loss, gradient_norm = problem.loss(), float(problem.gradient().double().norm())
    measured = pace(H)
    repeatable, symmetry = _consistency(H, seed)
    about = Check(
        origin=problem.origin,
        problem=problem.summary(),
        blocks=_blocks(problem),
        loss=loss,
        gradient_norm=gradient_norm,
        repeatable=repeatable,
        symmetry=symmetry,
        special=_grouped(special_modules(problem)),
        engine=H.plan.engine,
        why=f"{H.plan.reason}; symmetric to {max(symmetry, rounding(H)):.0e}",
        forecasts=forecasts(H, measured),
        compared_samples=problem.samples,
        eigenvalues=[],
        residuals=[],
        opinion=None,
        failures=[],
        cost=meter.read(),
        provenance=provenance(H, seed=seed, command=command),
    )
    if ready is not None:
        ready(about)
    needed, _ = comparison_seconds(H, measured, top=top, iterations=iterations * opinion)
    A = H
    if needed > budget:
        rows = max(LEAST_SAMPLES, int(problem.samples * budget / needed))
        A = Hessian(problem.part(rows), **execution)
    meter = Meter(A)
    pairs = extreme_eigenpairs(
        A,
        [("magnitude", top)],
        tolerance=TOLERANCE,
        seed=seed,
        progress=None if progress is None else functools.partial(progress, "eigenvalues"),
    )
    cost = about.cost + meter.read()
    exact = in_float64(A)
    if exact is not None:
        pairs = remeasure(pairs, exact, tolerance=TOLERANCE)
        cost += pairs.cost
    said = None
    if opinion:
        said = second_opinion(
            A.problem,
            pairs,
            iterations=iterations,
            seed=seed,
            progress=None if progress is None else functools.partial(progress, "PyHessian"),
        )
    return replace(
        about,
        compared_samples=A.problem.samples,
        eigenvalues=pairs.values.tolist(),
        residuals=pairs.residuals.tolist(),
        opinion=said,
        failures=_failures(1e3 * rounding(H), pairs, said, repeatable, symmetry),
        cost=cost,
    )


def _consistency(H: Hessian, seed: int) -> tuple[float, float]:
    """How far two products with one vector differ, and how far H is from symmetric."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(H.shape[0], generator=generator).to(H.device, H.dtype) for _ in range(2))
    first, again, other = H @ v, H @ v, H @ u
    size = float(first.norm()) or 1.0
    asymmetry = abs(float(u.double() @ first.double()) - float(v.double() @ other.double()))
    return float((first - again).norm()) / size, asymmetry / (size * float(u.norm()))


def _failures(
    tolerance: float,
    pairs: Eigenpairs,
    opinion: SecondOpinion | None,
    repeatable: float,
    symmetry: float,
) -> list[str]:
    found = []
    if repeatable > tolerance:
        found.append(f"two products with the same vector differ by {repeatable:.2g} of their size")
    if symmetry > tolerance:
        found.append(f"the Hessian is not symmetric: uᵀHv and vᵀHu differ by {symmetry:.2g}")
    if not bool(pairs.converged.all()):
        found.append(
            f"an eigenvalue did not converge: residuals, in {str(pairs.values.dtype).split('.')[-1]}, are "
            f"{', '.join(f'{r:.2g}' for r in pairs.residuals.tolist())}; try --dtype float64"
        )
    return found + (opinion.disagreements(pairs) if opinion is not None else [])


def _blocks(problem: Problem) -> list[Block]:
    """The parameters by the module they belong to, at the finest level that gives a short table."""
    every = dict(problem.model.named_parameters())
    modules = dict(problem.model.named_modules())
    deepest = max((name.count(".") for name in every), default=0)
    for depth in range(deepest, -1, -1):
        groups: dict[str, list[str]] = {}
        for name in every:
            owner = name.rpartition(".")[0]
            groups.setdefault(".".join(owner.split(".")[:depth]) if owner else "", []).append(name)
        if len(groups) <= BLOCKS:
            break
    chosen = set(problem.names)
    return [
        Block(
            owner,
            type(modules.get(owner, problem.model)).__name__,
            sum(name in chosen for name in names),
            sum(every[name].numel() for name in names if name in chosen),
            sum(every[name].numel() for name in names if name not in chosen),
        )
        for owner, names in groups.items()
    ]


def _grouped(special: list[tuple[str, str]]) -> list[tuple[str, int, list[str]]]:
    counts = Counter(phrase for _, phrase in special)
    names: Mapping[str, list[str]] = {phrase: [] for phrase in counts}
    for name, phrase in special:
        names[phrase].append(name)
    return [(phrase, count, names[phrase][:3]) for phrase, count in counts.items()]
