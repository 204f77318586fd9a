"""How many minima has a computed surface, and how high are the saddles between them?"""

import hashlib
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from landscape.errors import InputError
from landscape.estimators.merge_tree import NEIGHBOURS, MergeTree, Neighbours, merge_tree
from landscape.memory import peak_bytes
from landscape.results import TOPOLOGY_SCHEMA, Cost
from landscape.saved import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Minimum:
    """A cell below all around it, or the first of a plateau.

    `volume` is the share of the finite cells from which the steepest steps lead there; `parent` the saddle
    above it in the merge tree, None if there is none.
    """

    cell: list[int]
    value: float
    volume: float
    parent: int | None


@dataclass(frozen=True)
class Saddle:
    """A cell at which components of a sublevel set join; `parent` is the saddle above it in the tree."""

    cell: list[int]
    value: float
    parent: int | None


@dataclass(frozen=True)
class Pair:
    """A bar of the barcode: a component is born at a minimum, and dies where it joins one with a lower one.

    `minimum`, `saddle` and `into`, that lower minimum, are places in the lists; the last two and `death` are
    None for what never dies.
    """

    minimum: int
    saddle: int | None
    into: int | None
    birth: float
    death: float | None


@dataclass(frozen=True)
class SMAD:
    """Saddle–minimum average distance: the mean of f(saddle) − f(minimum) over the minima of the merge tree.

    Every minimum is taken with the saddle right above it, its `parent`; 0 where there is no saddle.
    `normalised` by the range of the values; `weighted`: every distance times the volume of the minimum.
    (Chen et al. 2026, arXiv:2602.07135.)
    """

    plain: float
    normalised: float
    weighted: float
    normalised_weighted: float


@dataclass(frozen=True, eq=False)
class Topology(Result, schema=TOPOLOGY_SCHEMA):
    """Minima, saddles and merge tree of the sublevel sets of values on a grid.

    Attributes:
        shape: of the grid.
        neighbours: "all" or "axes", see `topology`.
        walls: cells that are not finite.
        lowest, highest: of the finite values.
        minima, saddles: by rising value; both are the nodes of the merge tree, by their `parent`.
        pairs: the persistence barcode of the components, the longest bars first.
        smad: see `SMAD`.
    """

    shape: list[int]
    neighbours: str
    walls: int
    lowest: float
    highest: float
    minima: list[Minimum]
    saddles: list[Saddle]
    pairs: list[Pair]
    smad: SMAD
    cost: Cost
    provenance: dict[str, Any]

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw barcode and merge tree; see `landscape.plots.topology.plot_topology`."""
        from landscape.plots.topology import plot_topology

        return plot_topology(self.to_dict(), path, **options)


def topology(
    values: ArrayLike, *, neighbours: Neighbours = "all", command: str | None = None
) -> Topology:
    """The merge tree, the persistence barcode and the average height of saddles of values on a grid.

    The values are taken as they are: nothing is added to them, equal cells side by side make one minimum,
    and what is not finite is a wall that belongs to no sublevel set.

    Args:
        values: losses on a grid of any number of dimensions, such as the `loss` of a surface.
        neighbours: cells are joined to "all" that touch them, 8 in a plane, so that a narrow valley along a
            diagonal is one; or to those along the "axes" only, 4 in a plane.
        command: what was typed, for provenance.

    Raises:
        InputError: no grid of real numbers, or none of them finite.

    Example:
        >>> import landscape as ls
        >>> found = ls.topology([[1.0, 4.0, 0.0], [3.0, 5.0, 4.0], [2.0, 6.0, 7.0]])
        >>> [(pair.birth, pair.death) for pair in found.pairs], found.smad.plain
        ([(0.0, None), (1.0, 4.0), (2.0, 3.0)], 2.33333...)
    """
    start = time.perf_counter()
    if neighbours not in NEIGHBOURS:
        raise InputError(
            f"neighbours is {neighbours!r}: choose {' or '.join(map(repr, NEIGHBOURS))}"
        )
    grid = _grid(values)
    finite = np.isfinite(grid)
    tree = merge_tree(grid, neighbours)
    minima = _minima(tree, grid, int(finite.sum()))
    saddles = [
        Saddle(_index(cell, grid), float(grid.flat[cell]), _or_none(parent))
        for cell, parent in zip(tree.saddles, tree.saddle_parent, strict=True)
    ]
    lowest, highest = float(grid[finite].min()), float(grid[finite].max())
    return Topology(
        shape=list(grid.shape),
        neighbours=neighbours,
        walls=int((~finite).sum()),
        lowest=lowest,
        highest=highest,
        minima=minima,
        saddles=saddles,
        pairs=_pairs(tree, minima, saddles),
        smad=_smad(minima, saddles, highest - lowest),
        cost=Cost(0, None, time.perf_counter() - start, peak_bytes("cpu")),
        provenance=_provenance(grid, neighbours, command),
    )


def _grid(values: ArrayLike) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        grid = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the values are no grid of real numbers: {error}") from error
    if not grid.ndim or not grid.size:
        raise InputError(f"the values have shape {grid.shape}: expected a grid of losses")
    if not np.isfinite(grid).any():
        raise InputError(f"none of the {grid.size:,} values is finite: there is no sublevel set")
    return grid


def _minima(
    tree: MergeTree, grid: np.ndarray[Any, np.dtype[np.float64]], cells: int
) -> list[Minimum]:
    sizes = np.bincount(tree.basin[tree.basin >= 0], minlength=len(tree.minima))
    return [
        Minimum(_index(cell, grid), float(grid.flat[cell]), float(size / cells), _or_none(parent))
        for cell, size, parent in zip(tree.minima, sizes, tree.leaf_parent, strict=True)
    ]


def _pairs(tree: MergeTree, minima: list[Minimum], saddles: list[Saddle]) -> list[Pair]:
    """The longest first; of equal ones the lower minimum."""
    pairs = [
        Pair(
            i,
            _or_none(saddle),
            _or_none(into),
            minima[i].value,
            None if saddle < 0 else saddles[saddle].value,
        )
        for i, (saddle, into) in enumerate(zip(tree.death, tree.into, strict=True))
    ]
    return sorted(pairs, key=lambda p: -np.inf if p.death is None else p.birth - p.death)


def _smad(minima: list[Minimum], saddles: list[Saddle], extent: float) -> SMAD:
    under = [minimum for minimum in minima if minimum.parent is not None]
    if not under:
        return SMAD(0.0, 0.0, 0.0, 0.0)
    heights = np.array([saddles[m.parent].value - m.value for m in under if m.parent is not None])
    volumes = np.array([minimum.volume for minimum in under])
    plain, weighted = float(heights.mean()), float((heights * volumes).mean())
    return SMAD(plain, plain / extent, weighted, weighted / extent)


def _index(cell: int, grid: np.ndarray[Any, Any]) -> list[int]:
    return [int(i) for i in np.unravel_index(cell, grid.shape)]


def _or_none(place: int) -> int | None:
    return None if place < 0 else place


def _provenance(
    grid: np.ndarray[Any, Any], neighbours: Neighbours, command: str | None
) -> dict[str, Any]:
    from landscape import __version__

    return {
        "landscape": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "values_fingerprint": hashlib.sha256(grid.tobytes()).hexdigest(),
        "arguments": {"neighbours": neighbours},
    }
