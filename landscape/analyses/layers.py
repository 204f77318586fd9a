"""What does the curvature of each part of a model look like, and how do the parts couple?"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from landscape.analyses.failures import not_complete, not_converged
from landscape.analyses.operators import in_float64, operator_of, standing
from landscape.analyses.parameter_groups import By, Group, groups, positions
from landscape.analyses.spectrum import Eigenvalue
from landscape.errors import InputError
from landscape.estimators.block_eigenvalues import (
    BlockEigenvalues,
    block_eigenvalues,
    products_of,
)
from landscape.estimators.blocks import (
    BlockSpectra,
    BlockTraces,
    block_spectra,
    block_traces,
    deflated,
)
from landscape.estimators.lanczos import checked_limit
from landscape.estimators.slq import Measure
from landscape.estimators.smoothing import SmoothDensity, smooth
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import LAYERS_SCHEMA, Cost, Measured, Meter, Progress, provenance
from landscape.saved import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Phase = Literal["densities", "eigenvalues"]
DENSE_LIMIT = 1_000  # largest block that is built, when that takes fewer products
POINTS = 256  # of a block's density, at least


@dataclass(frozen=True, eq=False)
class Layer:
    """The spectrum of one diagonal block.

    `tensors` are the names of its parameters and `kinds` the classes of the modules they belong to.
    `exact` says that the whole block was built, so that nothing is estimated; else `trace_probes` is the
    number of samples behind the trace, whose interval is that of Student's t. `eigenvalues` are the
    largest, largest first; `density` integrates to 1; `ritz` holds the quadrature of every probe.
    """

    name: str
    kinds: list[str]
    tensors: list[str]
    parameters: int
    exact: bool
    trace: Measured
    trace_probes: int
    eigenvalues: list[Eigenvalue]
    smallest_eigenvalue: Eigenvalue
    density: SmoothDensity
    ritz: list[Measure]


@dataclass(frozen=True, eq=False)
class Layers(Result, schema=LAYERS_SCHEMA):
    """The spectra of the diagonal blocks of a curvature matrix, and the norms of all its blocks.

    `norms` (B, B) are ‖A_bc‖_F, with standard errors `norm_errors` by the delta method; `trace` is the
    sum over the blocks. `failures` lists, in words, what could not be trusted.
    """

    operator: str
    by: str | list[str]
    parameters: int
    loss: float | None
    gradient_norm: float | None
    trace: Measured
    blocks: list[Layer]
    norms: Array
    norm_errors: Array
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw densities and norms; see `landscape.plots.layers.plot_layers`."""
        from landscape.plots.layers import plot_layers

        return plot_layers(self.to_dict(), path, **options)


def layers(
    problem: Problem,
    *,
    by: By = "module",
    operator: str = "hessian",
    samples: int | None = None,
    top: int = 3,
    probes: int = 5,
    steps: int = 30,
    shared_probes: int = 30,
    tolerance: float = 1e-3,
    max_steps: int | None = None,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
    **execution: Unpack[Execution],
) -> Layers:
    """Spectrum, trace and leading eigenvalues of every diagonal block, and the norms between blocks.

    Every product with all diagonal blocks takes one column per block, and no more: a block of p
    parameters costs about probes × steps products and those of its eigenvalues, or p products where that
    is less; then it is known exactly. What is shared: each batch's gradient, by all columns; the first
    step of quadrature, by density, trace and norms; and `shared_probes` full vectors, by all traces. The
    eigenpairs that are found take their part out of the variance of the traces. See `block_spectra`,
    `deflated` and `block_traces`.

    Args:
        problem: the loss.
        by: "module" (default) for blocks by the module that owns the parameters, "type" by the class of
            that module, or globs, one block each, with a last one for the rest.
        operator: which matrix of the problem, see `spectrum`.
        samples: targets drawn per term for "fisher" (default: the exact expectation).
        top: number of largest eigenvalues of each block; the smallest one is always computed too.
        probes, steps: of stochastic Lanczos quadrature, per block.
        shared_probes: full vectors, for the traces of all blocks at once.
        tolerance, max_steps: of the eigenvalues, relative to the largest of the block, see `eigenpairs`.
        seed: of all probes and starting vectors.
        progress: called with (phase, products done, products expected).
        command: the command line, for provenance.
        execution: engine, memory, products, compile and plan of `CurvatureOperator`.

    Returns:
        The blocks in the order of the model; `failures` say what could not be trusted.

    Raises:
        InputError: blocks that overlap or match nothing, an unknown operator, or numbers out of range.
        UntrustedResult: a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> problem = ls.Problem(model, "mse", (torch.randn(20, 2), torch.randn(20, 1)))
        >>> [(block.name, block.parameters, block.exact) for block in ls.layers(problem).blocks]
        [('0', 9, True), ('2', 4, True)]
    """
    if not isinstance(problem, Problem):
        raise InputError(f"layers needs a Problem, not {type(problem).__name__}")
    A = operator_of(problem, operator, samples=samples, seed=seed, **execution)
    assert isinstance(A, CurvatureOperator)
    found = groups(problem, by)
    places = [positions(problem, group).to(A.device) for group in found]
    checked_limit(A, [("largest", top)], tolerance, max_steps)  # before the work, not after
    unused = set(problem.unused())
    zero = [b for b, group in enumerate(found) if unused.issuperset(group.tensors)]
    loss, gradient_norm = standing(A)
    # All products in one way: what the densities take, and the eigenvalues.
    A.expect(len(found) * (probes * steps + products_of(top)))
    exact = in_float64(A)
    meters = [Meter(operator) for operator in (A, exact) if operator is not None]

    def follow(phase: Phase) -> Progress | None:
        return None if progress is None else partial(progress, phase)

    spectra = block_spectra(
        A,
        places,
        probes=probes,
        steps=steps,
        shared_probes=shared_probes,
        dense_up_to=min(DENSE_LIMIT, probes * steps + products_of(top)),
        zero=zero,
        seed=seed,
        progress=follow("densities"),
    )
    pairs = block_eigenvalues(
        A,
        places,
        spectra.dense,
        zero=zero,
        top=top,
        exact=exact,
        tolerance=tolerance,
        max_steps=max_steps,
        seed=seed + 1,  # independent of the probes, as `deflated` asks
        progress=follow("eigenvalues"),
    )
    known = [(own.values, own.vectors) for own in pairs]
    traces = block_traces(deflated(spectra, A, places, known))
    cost, *others = [meter.read() for meter in meters]
    for other in others:  # within the same time
        cost = replace(cost + other, seconds=cost.seconds)
    size = np.sqrt(np.maximum(spectra.squares, 0))
    # The error of a square root: half that of the square, over the root.
    norm_errors = np.divide(
        spectra.squares_error, 2 * size, out=np.zeros_like(size), where=size > 0
    )
    arguments = {"top": top, "probes": probes, "steps": steps, "shared_probes": shared_probes}
    return Layers(
        operator=type(A).__name__,
        by=by if isinstance(by, str) else list(by),
        parameters=A.shape[0],
        loss=loss,
        gradient_norm=gradient_norm,
        trace=Measured(traces.total, traces.total_error),
        blocks=[
            _block(group, spectra, traces, b, top, own)
            for b, (group, own) in enumerate(zip(found, pairs, strict=True))
        ],
        norms=size,
        norm_errors=norm_errors,
        failures=[
            sentence
            for group, own in zip(found, pairs, strict=True)
            for sentence in _failures(group.name, own, top, tolerance)
        ],
        cost=cost,
        provenance=provenance(A, seed=seed, command=command)
        | {
            "residual_dtype": "float64"
            if exact is not None
            else str(A.dtype).removeprefix("torch.")
        }
        | {"arguments": {**arguments, "tolerance": tolerance}},
    )


def _block(
    group: Group,
    spectra: BlockSpectra,
    traces: BlockTraces,
    b: int,
    top: int,
    pairs: BlockEigenvalues,
) -> Layer:
    density = smooth(spectra.ritz[b], points=POINTS)
    if spectra.exact(b):
        density = density._replace(standard_error=np.zeros_like(density.values))
    found = [
        Eigenvalue(*pair)
        for pair in zip(pairs.values, pairs.residuals, pairs.converged, strict=True)
    ]
    return Layer(
        name=group.name,
        kinds=list(group.kinds),
        tensors=list(group.tensors),
        parameters=spectra.sizes[b],
        exact=spectra.exact(b),
        trace=Measured(float(traces.values[b]), float(traces.standard_errors[b])),
        trace_probes=traces.probes[b],
        eigenvalues=found[:top],
        smallest_eigenvalue=found[-1],
        density=density,
        ritz=spectra.ritz[b],
    )


def _failures(name: str, pairs: BlockEigenvalues, top: int, tolerance: float) -> list[str]:
    """What could not be trusted about one block, in words."""
    names = [f"eigenvalue {i + 1}" for i in range(min(top, len(pairs.values)))]
    failures = not_converged(
        [f"{which} of {name}" for which in [*names, "the smallest eigenvalue"]],
        pairs.values,
        pairs.residuals,
        pairs.converged,
        tolerance,
    )
    return failures if pairs.complete else [*failures, not_complete(f" of {name}")]
