"""The merge tree of values on a grid: where sublevel sets begin, and where they join."""

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Neighbours = Literal["all", "axes"]
NEIGHBOURS: tuple[Neighbours, ...] = ("all", "axes")


class MergeTree(NamedTuple):
    """Where components of {f ≤ c} appear and join as c rises; cells are numbered in C order.

    Attributes:
        minima: the first cell of every component that appears, by value and then by number.
        saddles: a cell at which components join, by value and then by number.
        leaf_parent: for every minimum the saddle (its place in `saddles`) at which its component first meets
            another; −1 for none.
        saddle_parent: the same for the component that a saddle makes.
        death: for every minimum the saddle at which its component joins one with a lower minimum
            (of equal ones the first in `minima` is the lower); −1 for none. `into`: that minimum.
        basin: for every cell the minimum to which the steepest steps from cell to cell lead; −1 for walls.
    """

    minima: list[int]
    saddles: list[int]
    leaf_parent: list[int]
    saddle_parent: list[int]
    death: list[int]
    into: list[int]
    basin: NDArray[np.intp]


def merge_tree(values: NDArray[np.float64], neighbours: Neighbours = "all") -> MergeTree:
    """Sweep the cells of a grid by value with a union–find; whole levels at once, so that ties make no minima.

    Neither the order of equal cells nor noise decides anything: a plateau is one cell with a large border.
    (Carr, Snoeyink & Axen 2003, doi:10.1016/S0925-7721(02)00093-7.)

    Args:
        values: of any number of dimensions; what is not finite is a wall.
        neighbours: "all" cells that touch, 8 in a plane; or those along the "axes", 4 in a plane.

    Example:
        >>> tree = merge_tree(np.array([2.0, 2.0, 5.0, 0.0, 3.0, 1.0]))
        >>> tree.minima, tree.saddles, tree.death, tree.basin.tolist()
        ([3, 5, 0], [4, 2], [-1, 0, 1], [2, 2, 0, 0, 0, 1])
    """
    padded = np.pad(np.where(np.isfinite(values), values, np.inf), 1, constant_values=np.inf)
    inside = np.pad(np.arange(values.size).reshape(values.shape), 1, constant_values=-1).ravel()
    offsets = _offsets(padded.shape, neighbours)
    flat: list[float] = padded.ravel().tolist()
    parent = list(range(len(flat)))
    parts: dict[int, list[_Part]] = {}  # of every root: what it was made of before this level
    joint: dict[int, int] = {}  # and the first cell at which two of them met
    basin = [-1] * len(flat)
    tree = MergeTree([], [], [], [], [], [], np.empty(0, np.intp))

    def root(cell: int) -> int:
        while parent[cell] != cell:
            parent[cell] = parent[parent[cell]]
            cell = parent[cell]
        return cell

    for level in _levels(padded.ravel()):
        for cell in level:
            parts[cell] = []
        for cell in level:
            for other in (cell + step for step in offsets):
                here, there = root(cell), root(other)
                if here == there or there not in parts:
                    continue
                met = [j for j in (joint.pop(here, None), joint.pop(there, None)) if j is not None]
                if parts[here] and parts[there]:
                    met.append(cell)
                parent[there] = here
                parts[here] += parts.pop(there)
                if met:
                    joint[here] = min(met)
        _drain(level, flat, offsets, basin)
        first: dict[int, int] = {}
        for cell in level:
            first.setdefault(root(cell), cell)
        for at, cell in first.items():
            if not parts[at]:
                parts[at] = [_Part(len(tree.minima), len(tree.minima), leaf=True)]
                tree.minima.append(int(inside[cell]))
                for empty in (tree.leaf_parent, tree.death, tree.into):
                    empty.append(-1)
            elif len(parts[at]) > 1:
                parts[at] = [_join(tree, parts[at], int(inside[joint.pop(at)]))]
        _fill(level, root, parts, basin)
    found = np.array(basin, np.intp)[inside >= 0]
    return tree._replace(basin=found)


class _Part(NamedTuple):
    """A component: its lowest minimum, and the node of the tree on top of it."""

    lowest: int
    node: int
    leaf: bool = False


def _join(tree: MergeTree, parts: list[_Part], cell: int) -> _Part:
    """A new saddle above some components, of which the one with the lowest minimum lives on."""
    saddle, lowest = len(tree.saddles), min(part.lowest for part in parts)
    tree.saddles.append(cell)
    tree.saddle_parent.append(-1)
    for part in parts:
        (tree.leaf_parent if part.leaf else tree.saddle_parent)[part.node] = saddle
        if part.lowest != lowest:
            tree.death[part.lowest], tree.into[part.lowest] = saddle, lowest
    return _Part(lowest, saddle)


def _drain(level: list[int], flat: list[float], offsets: list[int], basin: list[int]) -> None:
    """Cells go where their lowest neighbour went; on a plateau, by the shortest way to its border."""
    queue = []
    for cell in level:
        lower = [cell + step for step in offsets if flat[cell + step] < flat[cell]]
        if lower:
            basin[cell] = basin[min(lower, key=lambda other: (flat[other], other))]
            queue.append(cell)
    for cell in queue:
        for other in (cell + step for step in offsets):
            if flat[other] == flat[cell] and basin[other] < 0:
                basin[other] = basin[cell]
                queue.append(other)


def _fill(
    level: list[int], root: Callable[[int], int], parts: dict[int, list[_Part]], basin: list[int]
) -> None:
    """What drains nowhere is the bottom of its own basin."""
    for cell in level:
        if basin[cell] < 0:
            basin[cell] = parts[root(cell)][0].lowest


def _levels(flat: NDArray[np.float64]) -> list[list[int]]:
    """Numbers of the finite cells, in C order within every value, by rising value."""
    cells = np.flatnonzero(np.isfinite(flat))
    cells = cells[np.argsort(flat[cells], kind="stable")]
    cuts = np.flatnonzero(np.diff(flat[cells])) + 1
    return [level.tolist() for level in np.split(cells, cuts) if len(level)]


def _offsets(shape: tuple[int, ...], neighbours: Neighbours) -> list[int]:
    """Steps to the neighbours of a cell, in a flat array."""
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    steps = itertools.product((-1, 0, 1), repeat=len(shape))
    farthest = 1 if neighbours == "axes" else len(shape)
    chosen = [step for step in steps if 1 <= sum(map(abs, step)) <= farthest]
    return [sum(x * stride for x, stride in zip(step, strides, strict=True)) for step in chosen]
