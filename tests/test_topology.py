"""Minima, saddles and pairs are those that labelled sublevel sets show, one threshold after another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

import landscape as ls
from landscape.analyses.topology import Topology
from landscape.plots.topology import places, plot_topology
from landscape.results import to_json

Grid = NDArray[np.float64]


def structure(dimensions: int, neighbours: str) -> NDArray[Any]:
    return ndimage.generate_binary_structure(dimensions, dimensions if neighbours == "all" else 1)


def brute_force(values: Grid, neighbours: str) -> tuple[list, list[float]]:
    """Bars (birth, death) and the heights of saddles over minima, by labelling {f ≤ c} for every c.

    Minima are plateaus without a lower neighbour. A component's oldest minimum is its lowest, and of equal
    ones the first in C order; the others in it have died by then. The saddle right above a minimum is the
    lowest level at which its component holds another.
    """
    shape = structure(values.ndim, neighbours)
    finite = np.isfinite(values)
    levels = np.unique(values[finite])
    minima: list[int] = []
    for c in levels:
        plateaus, number = ndimage.label(values == c, shape)
        for k in range(1, number + 1):
            around = ndimage.binary_dilation(plateaus == k, shape) & finite
            if values[around].min() == c:
                minima.append(int(np.flatnonzero(plateaus.ravel() == k)[0]))
    minima.sort(key=lambda cell: (values.flat[cell], cell))
    death: dict[int, float] = {}
    above: dict[int, float] = {}
    for c in levels:
        labels = ndimage.label(finite & (values <= c), shape)[0].ravel()
        for component in np.unique(labels[labels > 0]):
            inside = [cell for cell in minima if labels[cell] == component]
            for cell in inside[1:]:
                death.setdefault(cell, float(c))
            for cell in inside if len(inside) > 1 else []:
                above.setdefault(cell, float(c))
    bars = sorted((float(values.flat[cell]), death.get(cell, np.inf)) for cell in minima)
    heights = [above[cell] - float(values.flat[cell]) for cell in minima if cell in above]
    return bars, heights


def bars_of(found: Topology) -> list[tuple[float, float]]:
    return sorted((p.birth, np.inf if p.death is None else p.death) for p in found.pairs)


@pytest.mark.parametrize("neighbours", ["all", "axes"])
@pytest.mark.parametrize("kind", ["smooth", "ties", "walls"])
@pytest.mark.parametrize("shape", [(12,), (7, 8), (1, 9), (3, 4, 4)])
def test_bars_and_distances_are_those_of_labelled_sublevel_sets(
    shape: tuple[int, ...], kind: str, neighbours: Any
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        values = rng.standard_normal(shape)
        if kind != "smooth":
            values = rng.integers(0, 6, shape).astype(float)
        if kind == "walls":
            values[rng.random(shape) < 0.25] = rng.choice([np.nan, np.inf, -np.inf])
            values.flat[0] = 1.0
        found = ls.topology(values, neighbours=neighbours)
        bars, heights = brute_force(values, neighbours)
        assert bars_of(found) == bars
        plain = float(np.mean(heights)) if heights else 0.0
        assert found.smad.plain == pytest.approx(plain)
        assert found.walls == int((~np.isfinite(values)).sum())


@pytest.mark.parametrize("shape", [(20, 20), (5, 6, 7)])
def test_bars_are_those_of_gudhi(shape: tuple[int, ...]) -> None:
    gudhi = pytest.importorskip("gudhi", reason="gudhi is no dependency; the oracle above is")
    rng = np.random.default_rng(8)
    for values in (rng.standard_normal(shape), rng.integers(0, 6, shape).astype(float)):
        for neighbours, kind in (("all", "top_dimensional_cells"), ("axes", "vertices")):
            complex_ = gudhi.CubicalComplex(**{kind: values})
            complex_.persistence(min_persistence=0.0)
            found = complex_.persistence_intervals_in_dimension(0)
            expected = sorted((float(b), float(d)) for b, d in found if b < d)
            assert bars_of(ls.topology(values, neighbours=neighbours)) == expected  # type: ignore[arg-type]


def test_the_tree_leads_from_every_minimum_up_to_one_root() -> None:
    values = np.random.default_rng(1).standard_normal((20, 20))
    found = ls.topology(values)
    roots = set()
    for minimum in found.minima:
        height, parent = minimum.value, minimum.parent
        assert values[tuple(minimum.cell)] == minimum.value
        while parent is not None:
            saddle = found.saddles[parent]
            assert saddle.value > height and values[tuple(saddle.cell)] == saddle.value
            height, last, parent = saddle.value, parent, saddle.parent
        roots.add(last)
    assert len(roots) == 1
    joins = [n.parent for n in (*found.minima, *found.saddles) if n.parent is not None]
    assert all(joins.count(i) >= 2 for i in range(len(found.saddles)))
    assert sum(joins.count(i) - 1 for i in range(len(found.saddles))) == len(found.minima) - 1


def test_volumes_are_the_cells_that_steepest_descent_brings_to_a_minimum() -> None:
    values = np.random.default_rng(2).standard_normal((15, 17))
    counts: dict[tuple[int, ...], int] = {}
    for start in np.ndindex(values.shape):
        cell = start
        while True:
            window = tuple(slice(max(0, i - 1), i + 2) for i in cell)
            step = np.unravel_index(values[window].argmin(), values[window].shape)
            lower = tuple(int(s.start + i) for s, i in zip(window, step, strict=True))
            if lower == cell:
                break
            cell = lower
        counts[cell] = counts.get(cell, 0) + 1
    found = ls.topology(values)
    assert {tuple(m.cell): round(m.volume * values.size) for m in found.minima} == counts


def test_a_plateau_is_one_minimum_and_drains_by_its_nearest_border() -> None:
    assert len(ls.topology(np.ones((5, 6))).minima) == 1
    bowl = np.array([[9, 9, 9, 9], [9, 1, 1, 9], [9, 1, 1, 9], [9, 9, 9, 9.0]])
    (minimum,) = ls.topology(bowl).minima
    assert minimum.cell == [1, 1] and minimum.volume == 1
    # A terrace is no minimum: its five cells drain to the ends they are nearest to.
    found = ls.topology([0.0, 5, 5, 5, 5, 5, 1.0])
    assert [(m.cell, round(7 * m.volume)) for m in found.minima] == [([0], 4), ([6], 3)]
    assert [saddle.value for saddle in found.saddles] == [5.0]


def test_three_valleys_that_meet_on_one_plateau_make_one_saddle() -> None:
    values = np.array([[0.0, 4, 1], [4, 4, 4], [9, 2, 9]])
    found = ls.topology(values, neighbours="axes")
    assert len(found.saddles) == 1 and [m.parent for m in found.minima] == [0, 0, 0]
    assert bars_of(found) == [(0, np.inf), (1, 4), (2, 4)]
    assert found.smad.plain == pytest.approx((4 + 3 + 2) / 3)


def test_a_valley_along_a_diagonal_is_one_with_all_neighbours_and_many_with_axes() -> None:
    values = 1 - np.eye(5)
    assert len(ls.topology(values).minima) == 1
    assert len(ls.topology(values, neighbours="axes").minima) == 5


def test_average_distance_by_hand_in_all_its_forms() -> None:
    # Minima 0, 1 and 2 with three, two and one cells; 1 and 2 meet at 3, both with 0 at 10.
    found = ls.topology([5.0, 0.0, 10.0, 1.5, 1.0, 3.0, 2.0])
    assert [round(7 * m.volume) for m in found.minima] == [3, 3, 1]
    heights, volumes = np.array([10.0, 2.0, 1.0]), np.array([3, 3, 1]) / 7
    assert found.smad.plain == pytest.approx(heights.mean())
    assert found.smad.normalised == pytest.approx(heights.mean() / 10)
    assert found.smad.weighted == pytest.approx((heights * volumes).mean())
    assert found.smad.normalised_weighted == pytest.approx((heights * volumes).mean() / 10)
    assert [(p.birth, p.death) for p in found.pairs] == [(0, None), (1, 10), (2, 3)]


def test_values_are_taken_as_they_are_nothing_is_added_and_nothing_replaced() -> None:
    # Another tool adds noise to the largest cells and puts means in the place of what is not finite.
    values = np.random.default_rng(3).integers(0, 9, (9, 9)).astype(float)
    values[4, :] = values.max()
    before = values.copy()
    found = ls.topology(values)
    assert np.array_equal(values, before)
    heights = {m.value for m in found.minima} | {s.value for s in found.saddles}
    assert heights <= set(values.ravel()) and found.highest == values.max()
    again = ls.topology(values)
    assert (found.minima, found.saddles, found.pairs, found.smad) == (
        again.minima,
        again.saddles,
        again.pairs,
        again.smad,
    )
    values[4, :] = np.nan  # a wall from side to side: two landscapes that never meet
    apart = ls.topology(values)
    assert sum(pair.death is None for pair in apart.pairs) == 2
    parts = [ls.topology(values[:4]), ls.topology(values[5:])]
    assert bars_of(apart) == sorted([*bars_of(parts[0]), *bars_of(parts[1])])


def test_topology_does_not_change_under_a_monotone_map_or_a_turn() -> None:
    values = np.random.default_rng(4).standard_normal((11, 13))
    found = ls.topology(values)
    mapped = ls.topology(np.exp(values))
    assert [m.cell for m in mapped.minima] == [m.cell for m in found.minima]
    assert [s.cell for s in mapped.saddles] == [s.cell for s in found.saddles]
    assert [m.volume for m in mapped.minima] == [m.volume for m in found.minima]
    assert bars_of(ls.topology(values.T)) == bars_of(ls.topology(values[::-1])) == bars_of(found)


def test_a_single_minimum_has_no_saddle_and_no_distance() -> None:
    x = np.linspace(-1, 1, 9)
    found = ls.topology(x[:, None] ** 2 + 2 * x[None] ** 2)
    assert len(found.minima) == 1 and not found.saddles
    assert found.minima[0].parent is None and found.minima[0].volume == 1
    assert found.smad.plain == found.smad.normalised_weighted == 0


def test_torch_tensors_and_lists_are_grids_too() -> None:
    values = np.random.default_rng(5).standard_normal((4, 5))
    expected = ls.topology(values).pairs
    assert ls.topology(torch.from_numpy(values)).pairs == expected  # type: ignore[arg-type]
    assert ls.topology(values.tolist()).pairs == expected


@pytest.mark.parametrize(
    ("values", "options", "sentence"),
    [
        ([[1.0, 2.0]], {"neighbours": "six"}, "neighbours is 'six': choose 'all' or 'axes'"),
        (3.0, {}, r"the values have shape \(\): expected a grid"),
        ([], {}, r"shape \(0,\)"),
        ([["a"]], {}, "no grid of real numbers"),
        ([[1.0], [1.0, 2.0]], {}, "no grid of real numbers"),
        ([np.nan, np.inf], {}, "none of the 2 values is finite"),
    ],
)
def test_what_is_no_grid_is_refused(values: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ls.InputError, match=sentence):
        ls.topology(values, **options)


def test_results_come_back_from_files_and_pictures_show_the_most_persistent(tmp_path: Path) -> None:
    values = np.random.default_rng(6).standard_normal((20, 20))
    found = ls.topology(values)
    found.save(tmp_path / "t.json")
    again = ls.Topology.load(tmp_path / "t.json")
    assert to_json(again.to_dict()) == to_json(found.to_dict())
    assert json.loads((tmp_path / "t.json").read_text())["schema"] == "landscape/topology/1"
    bars, tree = again.plot(tmp_path / "t.pdf", top=8).axes
    drawn = [line.get_ydata() for line in bars.get_lines() if len(line.get_ydata()) == 2]
    expected = [(p.birth, found.highest if p.death is None else p.death) for p in found.pairs[:8]]
    assert [tuple(ends) for ends in drawn] == expected
    assert f"the 8 most persistent of {len(found.minima)} minima" in bars.get_title(loc="left")
    assert len(tree.get_lines()) == len(bars.get_lines()) + 7  # a line for every saddle
    with pytest.raises(ls.InputError, match="not a result of kind 'landscape/topology/1'"):
        plot_topology({"schema": "landscape/eigen/1"})


def test_branches_of_the_picture_do_not_cross() -> None:
    pairs = ls.topology(np.random.default_rng(7).standard_normal((25, 25))).to_dict()["pairs"]
    where = dict(zip([p["minimum"] for p in pairs], places(pairs), strict=True))
    assert sorted(where.values()) == list(range(len(pairs)))
    for pair in pairs:
        if pair["death"] is None:
            continue
        low, high = sorted((where[pair["into"]], where[pair["minimum"]]))
        for other in pairs:
            if low < where[other["minimum"]] < high:
                assert other["death"] is not None and other["death"] <= pair["death"]
