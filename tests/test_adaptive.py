"""An interpolated grid is as close to the whole as it says, with far fewer points."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.adaptive import Interpolation, fill
from landscape.estimators.loss_at import Losses

Array = NDArray[np.float64]
GRID = [np.linspace(-1, 1, 51), np.linspace(-2, 2, 41)]


def evaluator(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Losses]:
    def evaluate(c: Tensor) -> Losses:
        loss = function(c)
        return Losses(loss, loss * 0.01, loss - 1, loss * 0.02, None)

    return evaluate


def truth(function: Callable[[Tensor], Tensor]) -> Array:
    mesh = np.stack(np.meshgrid(*GRID, indexing="ij"), -1)
    return function(torch.from_numpy(mesh.reshape(-1, 2))).numpy().reshape(51, 41)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bowl": lambda c: 1 + c[:, 0] ** 2 + 3 * c[:, 1] ** 2 + c.prod(1),
    "wall": lambda c: 1 + torch.exp(4 * c[:, 0]) + 0.1 * c[:, 1] ** 2,
    "one wavy axis": lambda c: 2 + torch.sin(9 * c[:, 0]) + 0.01 * c[:, 1],
    "valley": lambda c: ((c[:, 1] - c[:, 0] ** 2) ** 2 + 0.05).sqrt(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_smooth_surfaces_need_a_third_of_the_points_at_most(name: str) -> None:
    function = FUNCTIONS[name]
    found, computed, about = fill(evaluator(function), GRID, seed=1)
    whole = truth(function)
    assert 3 * about.computed <= about.points == 51 * 41 and about.error <= 0.01
    assert about.computed == computed.sum() and about.held_back == 60
    loss = found.loss.numpy().reshape(51, 41)
    np.testing.assert_array_equal(loss[computed], whole[computed])
    off = np.abs(loss - whole) / np.ptp(whole)
    assert (off > 0.01).mean() <= 0.05  # what sixty points say, with 95 % confidence
    np.testing.assert_allclose(found.rise.numpy(), found.loss.numpy() - 1, atol=1e-9)
    np.testing.assert_allclose(found.standard_error.numpy(), found.loss.numpy() * 0.01, atol=1e-9)


def test_lines_are_added_along_the_axis_that_needs_them() -> None:
    # The second axis would do with 2 lines: of 7 there, at least 26 are needed on the first.
    _, _, about = fill(evaluator(FUNCTIONS["one wavy axis"]), GRID)
    assert about.computed <= 7 * 26 + 3 * about.held_back


def test_a_step_is_computed_everywhere_rather_than_smoothed() -> None:
    step = lambda c: (c[:, 0] > 0.3).double()
    found, computed, about = fill(evaluator(step), GRID)
    np.testing.assert_array_equal(
        found.loss.numpy().reshape(51, 41)[computed], truth(step)[computed]
    )
    assert about.computed > about.points / 3 or about.error <= 0.01


def test_nothing_is_interpolated_beside_points_that_are_not_finite() -> None:
    pole = lambda c: torch.where(c[:, 0] > 0.9, torch.inf, c[:, 1])
    found, computed, about = fill(evaluator(pole), GRID)
    assert computed.all() and about == Interpolation(2091, 2091, 0.0, 0, 4.0)
    np.testing.assert_array_equal(found.loss.numpy().reshape(51, 41), truth(pole))


def test_small_grids_are_computed_whole() -> None:
    small = [np.linspace(0, 1, 3), np.linspace(0, 1, 4)]
    found, computed, about = fill(evaluator(FUNCTIONS["bowl"]), small)
    assert computed.all() and about.computed == 12 and len(found.loss) == 12


def small_problem() -> ls.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
    return ls.Problem(model, "cross_entropy", (x, torch.arange(60) % 3))


def test_an_adaptive_surface_is_that_of_the_whole_grid(tmp_path: Path) -> None:
    problem = small_problem()
    axes = ls.hessian_axes(problem)
    whole = ls.surface(problem, axes, points=31, check=False)
    found = ls.surface(problem, axes, points=31, adaptive=True, check=False)
    assert found.interpolation is not None and found.computed is not None
    assert found.interpolation.computed * 3 < 31 * 31
    span = np.ptp(whole.loss)
    assert float(np.abs(found.loss - whole.loss).max()) <= 0.02 * span
    np.testing.assert_allclose(found.loss[found.computed], whole.loss[found.computed], rtol=1e-5)
    found.save(tmp_path / "s.json")
    back = ls.Surface.load(tmp_path / "s.json")
    assert back.interpolation == found.interpolation
    np.testing.assert_array_equal(back.computed, found.computed)


def test_a_stopped_adaptive_surface_goes_on_to_the_same_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landscape.checkpoint.SHARE", 1e9)
    problem = small_problem()
    options = {"points": 31, "extent": 2.0, "adaptive": True, "check": False}
    whole = ls.surface(problem, "random", **options)  # type: ignore[arg-type]

    class Stopped(Exception):
        pass

    def stop(phase: str, done: int, expected: int) -> None:
        if done > 60:
            raise Stopped

    with pytest.raises(Stopped):
        ls.surface(problem, "random", progress=stop, resume=tmp_path / "r", **options)  # type: ignore[arg-type]
    again = ls.surface(problem, "random", resume=tmp_path / "r", **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.computed, whole.computed)
    np.testing.assert_allclose(again.loss, whole.loss, rtol=1e-5)
