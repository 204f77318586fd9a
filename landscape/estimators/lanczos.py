"""Eigenpairs at the ends of the spectrum by thick-restart Lanczos, in bounded memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from landscape.batches import digest
from landscape.checkpoint import Resume, Stage, State, stage_of
from landscape.errors import InputError
from landscape.estimators.probes import gaussian, generator
from landscape.estimators.search import End, Search, best
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Progress

Which = Literal["largest", "smallest", "magnitude", "both"]
FREE = 2**24  # bytes of basis that are not worth saving
WIDEST = 300  # vectors; with more, the small dense problems would cost as much as the products


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues with their vectors and how far each is from being exact.

    Attributes:
        values: (k,).
        vectors: (P, k), of unit length.
        residuals: (k,), ‖Av − λv‖, rather more than less: what the recurrence says, and an estimate of how far
            the recurrence is from the truth. A has an eigenvalue within ‖Av − λv‖ of the value.
        converged: (k,), whether the residual is within the tolerance.
        gaps: (k,), distance of each value from where the nearest other one may be that was seen, returned or
            not.
        complete: whether a search in the rest of the space was made and found nothing better; without it
            an eigenvalue may be missing, such as a further copy of a multiple one.
        missing: bound on the probability that the search overlooked one all the same; 1 where the bound
            says nothing, and only its convergence speaks for it.
        norm: the largest |λ| seen, to which the tolerance is relative.
        steps: products of the search.
        ends: what was asked for.
        cost: of everything.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    gaps: Tensor
    complete: bool
    missing: float
    norm: float
    steps: int
    ends: tuple[End, ...]
    cost: Cost

    @property
    def vector_errors(self) -> Tensor:
        """Bounds (k,) of sin ∠(v, eigenvector), if no other eigenvalue lies in the gap: residual over gap
        (Davis & Kahan 1970, doi:10.1137/0707001); 1 where values lie too close to tell vectors apart."""
        return torch.where(self.gaps > 0, self.residuals / self.gaps, 1).clamp(max=1)


def eigenpairs(
    A: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    tolerance: float = 1e-4,
    basis: int | None = None,
    block: int = 1,
    max_steps: int | None = None,
    start: Tensor | None = None,
    verify: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    resume: Resume = None,
) -> Eigenpairs:
    """The k eigenpairs of A at the wanted end of the spectrum.

    Lanczos in a basis of bounded size, thick-restarted when it is full (Wu & Simon 2000,
    doi:10.1137/S0895479898334605), with full reorthogonalisation, so that no eigenvalue is returned twice
    by rounding. A Krylov space from one vector holds one direction of each eigenspace: a small residual
    proves an eigenpair, never completeness. So when the pairs have converged, a fresh random vector
    searches the rest of the space. If it finds better ones the pairs are locked and the search goes on;
    else it stops when an eigenvalue that was overlooked would be improbable (see `Verification.missing`)
    or its own best value has converged. Residuals are those of the recurrence;
    one more product, with a random combination of the vectors, estimates how far the recurrence is from
    the truth, rounding included, and this is added to each. (Where vectors had to be cut off from their
    space, k products measure them.)

    Args:
        A: the operator, order P.
        k: number of eigenpairs, at most P.
        which: "largest" or "smallest" (algebraically), "magnitude", or "both" ends (the larger half of
            an odd k from the top). The wanted come first: smallest first for "smallest", largest
            magnitude first for "magnitude", else largest first.
        tolerance: largest accepted residual, relative to the largest |λ| of A.
        basis: vectors of length P in the basis, at least k + 2·block (default the largest of 2k + 8, k + 4·block and
            20, and up to 300 as long as they take less than 16 MiB). About six more are at work beside it.
        block: vectors that are multiplied at once; more than one helps with clusters, and where a product
            with several costs little more than one with a single vector.
        max_steps: products of the search at most (default max(1000, 100·k)).
        start: (P,) or (P, j), vectors near the wanted ones, such as those of the same network a little
            earlier in training; the search begins with their sum, or with as many sums as
            `block` says, and random vectors where they are too few.
        verify: search the rest of the space for better ones; without it `complete` is False.
        seed: of the random starting vectors.
        progress: called with (products done, products at most, as far as is known).
        resume: a file that keeps the state, so that the same call goes on after a kill; see `Checkpoint`.

    Returns:
        The pairs, whether or not they converged: look at `converged` and `complete`.

    Raises:
        InputError: k is not between 1 and P, `max_steps` or `basis` is too small, `start` does not fit, or
            the tolerance is not positive.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([3.0, 1.0, 3.0, -2.0])))
        >>> [round(value, 9) for value in ls.eigenpairs(A, 2).values.tolist()]
        [3.0, 3.0]
    """
    if which not in ("largest", "smallest", "magnitude", "both"):
        raise InputError(f"which is {which!r}: choose 'largest', 'smallest', 'magnitude' or 'both'")
    top = {"largest": k, "both": (k + 1) // 2}.get(which, 0)
    ends: list[End] = [("largest", top), ("smallest", k - top)]
    if which == "magnitude":
        ends = [("magnitude", k)]
    found = extreme_eigenpairs(
        A,
        ends,
        tolerance=tolerance,
        basis=basis,
        block=block,
        max_steps=max_steps,
        start=start,
        verify=verify,
        seed=seed,
        progress=progress,
        resume=resume,
    )
    return _ordered(found, found.values.argsort(descending=True)) if which == "both" else found


def extreme_eigenpairs(
    A: Operator,
    ends: Sequence[End],
    *,
    tolerance: float = 1e-4,
    basis: int | None = None,
    block: int = 1,
    max_steps: int | None = None,
    start: Tensor | None = None,
    verify: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    resume: Resume = None,
) -> Eigenpairs:
    """Eigenpairs for several ends at once, such as [("largest", 5), ("smallest", 1)].

    One Krylov space serves them all; the pairs come in the order of `ends`, the most wanted first.
    Everything else is as for `eigenpairs`.
    """
    require_operator(A)
    limit = checked_limit(A, ends, tolerance, max_steps)
    wanted = tuple((end, count) for end, count in ends if count)
    size = basis_size(A, sum(count for _, count in wanted), basis, block)
    source = generator(seed)
    first = None if start is None else _starting(A, start, block, source)
    work = {"ends": wanted, "tolerance": tolerance, "basis": size, "block": block, "limit": limit}
    work |= {"verify": verify, "seed": seed, "start": None if first is None else digest(first)}
    stage = stage_of(resume, A, "eigenpairs", work)
    if stage.state is not None and "result" in stage.state:
        return _loaded(stage, A)
    meter = stage.meter(A)
    A.expect(min(limit, 10 * sum(count for _, count in wanted) + 30), width=block)
    search = Search(A, wanted, tolerance, limit, size, block, verify, source, progress)
    if stage.state is None:
        search.begin(first)
    else:
        search.restore(stage.state)
        stage.forget()
    while not search.done:
        search.advance()
        stage.offer(meter, search.state)
    cut = search.cut
    vectors, values, residuals, gaps = search.result()
    found = Eigenpairs(
        torch.as_tensor(values).to(vectors),
        vectors,
        torch.as_tensor(residuals).to(vectors),
        torch.as_tensor(residuals <= tolerance * search.norm).to(vectors.device),
        torch.as_tensor(gaps).to(vectors),
        search.complete,
        search.missing,
        search.norm,
        search.steps,
        wanted,
        meter.read(),
    )
    if cut:  # what was cut off is known too roughly
        measured = remeasure(found, A, tolerance=tolerance)
        found = replace(measured, cost=found.cost + measured.cost)
    stage.offer(meter, lambda: _saved(found), done=True)
    return found


def _saved(found: Eigenpairs) -> State:
    return {"result": {f.name: getattr(found, f.name) for f in fields(found) if f.name != "cost"}}


def _loaded(stage: Stage, A: Operator) -> Eigenpairs:
    assert stage.state is not None
    assert stage.earlier is not None
    saved = stage.state["result"]
    tensors = {k: v.to(A.device) for k, v in saved.items() if isinstance(v, Tensor)}
    ends = tuple((end, count) for end, count in saved["ends"])
    return Eigenpairs(**saved | tensors | {"ends": ends, "cost": stage.earlier})


def checked_limit(A: Operator, ends: Sequence[End], tolerance: float, max_steps: int | None) -> int:
    """The most products that `extreme_eigenpairs` may use for its search.

    Raises:
        InputError: what it was asked for is out of range.
    """
    k = sum(count for _, count in ends)
    if not 1 <= k <= A.shape[0] or any(count < 0 for _, count in ends):
        raise InputError(f"k is {k}: it must lie between 1 and the order {A.shape[0]}")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"tolerance is {tolerance}: it must be positive, for example 1e-4")
    limit = max_steps if max_steps is not None else max(1000, 100 * k)
    if limit < k:
        raise InputError(f"max_steps is {max_steps}: {k} eigenpairs need at least {k} steps")
    return limit


def basis_size(A: Operator, k: int, asked: int | None = None, block: int = 1) -> int:
    """Vectors in the basis."""
    if block < 1:
        raise InputError(f"block is {block}: it must be at least 1")
    if asked is None:
        affordable = FREE // (A.dtype.itemsize * A.shape[0])
        asked = max(2 * k + 8, 20, k + 4 * block, min(WIDEST, affordable))
    elif asked < min(k + 2 * block, A.shape[0] + block):
        raise InputError(
            f"basis is {asked}: {k} eigenpairs in blocks of {block} need at least {k + 2 * block} vectors"
        )
    return asked


def _starting(A: Operator, start: Tensor, width: int, source: torch.Generator) -> Tensor:
    """A block (P, width): sums of starting vectors, and random ones where there are too few."""
    block = start.detach().reshape(len(start), -1) if start.ndim in (1, 2) else start
    if block.ndim != 2 or len(block) != A.shape[0] or not block.shape[1]:
        raise InputError(
            f"start has shape {tuple(start.shape)}: give vectors of length {A.shape[0]} as columns"
        )
    if not bool(torch.isfinite(block).all()):
        raise InputError("start holds numbers that are not finite: leave it out")
    block = block.to(A.device, A.dtype)
    parts = [block[:, i::width].sum(1) for i in range(min(width, block.shape[1]))]
    summed = torch.stack(parts, dim=1)
    if not bool((norms(summed) > 0).all()):
        raise InputError("start holds vectors that are zero, or whose sum is: leave it out")
    more = gaussian(A, width - len(parts), source) if len(parts) < width else summed[:, :0]
    return torch.cat([summed, more], dim=1)


def remeasure(
    pairs: Eigenpairs, A: Operator, *, tolerance: float = 1e-4, stage: Stage | None = None
) -> Eigenpairs:
    """The same vectors measured with another operator: Rayleigh quotients and residuals by k products.

    Measured in float64, the pairs of a float32 operator get residuals that include the rounding of all
    the float32 arithmetic before, and values whose error is of second order in them.
    """
    stage = stage or Stage()
    meter = stage.meter(A)
    vectors = pairs.vectors.to(A.dtype)
    vectors = vectors / norms(vectors).to(vectors)
    numbers = torch.empty(2, 0, dtype=A.dtype, device=A.device)  # values and residuals
    if stage.state is not None:
        numbers = stage.state["numbers"].to(numbers)
    while (start := numbers.shape[1]) < vectors.shape[1]:
        part = vectors[
            :, start : start + 4
        ]  # a few at once: they lie in memory beside their products
        products = A @ part
        # Divided by the squared length once more: in float32 that is 1 only to seven digits.
        values = (dots(part, products) / dots(part, part)).to(vectors)
        residuals = norms(products.sub_(part * values)).to(vectors)
        numbers = torch.cat([numbers, torch.stack([values, residuals])], dim=1)
        done = numbers.shape[1] == vectors.shape[1]
        stage.offer(meter, lambda found=numbers: {"numbers": found}, done=done)  # type: ignore[misc]
    found = replace(
        pairs,
        values=numbers[0],
        vectors=vectors,
        residuals=numbers[1],
        converged=numbers[1] <= tolerance * pairs.norm,
        gaps=pairs.gaps.to(vectors),
        cost=meter.read(),
    )
    # Rayleigh quotients may stand in another order than the Ritz values did.
    order, start = [], 0
    for end, count in pairs.ends:
        group = found.values[start : start + count].double().cpu().numpy()
        order += [start + int(i) for i in best(group, end, count)]
        start += count
    return _ordered(found, torch.tensor(order, device=vectors.device))


def _ordered(pairs: Eigenpairs, order: Tensor) -> Eigenpairs:
    return replace(
        pairs,
        values=pairs.values[order],
        vectors=pairs.vectors[:, order],
        residuals=pairs.residuals[order],
        converged=pairs.converged[order],
        gaps=pairs.gaps[order],
    )
