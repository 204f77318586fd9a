"""Surfaces: the right loss at the right place, checked, resumable, and saved whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.axes import Axis
from landscape.analyses.curvature_check import curvature_checks
from landscape.results import to_json


def quadratic(noise: float = 1.0) -> tuple[ls.Problem, Tensor]:
    """Least squares, whose loss is L(θ) = L₀ + gᵀδ + δᵀHδ/2 exactly, and H."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=source, dtype=torch.float64) * torch.arange(1, 6)
    y = noise * torch.randn(40, 1, generator=source, dtype=torch.float64)
    torch.manual_seed(0)
    problem = ls.Problem(nn.Linear(5, 1, bias=False).double(), "mse", (x, y), batch_size=16)
    return problem, ls.Hessian(problem).dense()


def relu_net(seed: int = 0) -> ls.Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    source = torch.Generator().manual_seed(1)
    x = torch.randn(50, 6, generator=source)
    model(x)
    return ls.Problem(model.eval(), "cross_entropy", (x, torch.arange(50) % 3), batch_size=20)


def test_every_cell_of_an_oblong_grid_is_the_loss_at_its_own_coordinates() -> None:
    # Zig-zag grids, rows and columns exchanged, and grids without their centre are defects of others.
    problem, H = quadratic()
    D = torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double()
    found = ls.surface(problem, D, points=(3, 7), extent=[(-0.5, 1.0), (-2.0, 2.0)])
    assert found.loss.shape == (3, 7)
    np.testing.assert_allclose(found.grid[0], [-0.5, 0.25, 1.0])
    np.testing.assert_allclose(found.grid[1], np.linspace(-2, 2, 7))
    g, center = problem.gradient(), problem.loss()
    for i, a in enumerate(found.grid[0]):
        for j, b in enumerate(found.grid[1]):
            step = D @ torch.tensor([a, b])
            expected = center + float(g @ step + step @ H @ step / 2)
            assert found.loss[i, j] == pytest.approx(expected, rel=1e-10)
    assert found.center == center and found.failures == []


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5)])
def test_lines_and_grids_of_more_axes(shape: tuple[int, ...]) -> None:
    problem, H = quadratic()
    D = torch.eye(5).double()[:, : len(shape)]
    found = ls.surface(problem, D, points=shape, extent=0.5)
    assert found.loss.shape == shape == found.loss_standard_error.shape
    corner = D @ torch.full((len(shape),), 0.5).double()
    expected = problem.loss() + float(problem.gradient() @ corner + corner @ H @ corner / 2)
    assert found.loss[(-1,) * len(shape)] == pytest.approx(expected, rel=1e-10)


def test_curvature_along_hessian_axes_is_their_eigenvalue() -> None:
    problem, H = quadratic()
    found = ls.surface(problem, "hessian", ranks=(1, -1), points=3)
    values = torch.linalg.eigvalsh(H)
    assert found.checks.axes is not None
    for check, value in zip(found.checks.axes, (values[-1], values[0]), strict=True):
        assert check.curvature == pytest.approx(float(value), rel=1e-8)
        assert check.second_difference == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(found.checks.curvature_at_scale, [values[-1], values[0]], rtol=1e-6)
    assert found.checks.centre_relative_error < 1e-12 and found.largest_cosine < 1e-7


def test_curvature_is_found_on_its_plateau_where_rectifiers_have_kinks() -> None:
    problem = relu_net()
    found = ls.surface(problem, "hessian", points=3)
    assert found.checks.axes is not None and found.failures == []
    for check in found.checks.axes:
        assert check.relative_error is not None and check.relative_error < 0.01
        assert check.eigenvalue_error is not None and check.eigenvalue_error < 0.01


def one_weight(loss: Callable[[Tensor], Tensor]) -> ls.Problem:
    """A problem whose loss is any function of a single weight, which is 1."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    data = [torch.ones(1, 1).double()]
    return ls.Problem.from_closure(model, lambda m, x: (loss(m(x)).mean(), 1), data)


def test_curvature_at_the_scale_of_the_picture_is_per_unit_of_length() -> None:
    problem = one_weight(lambda w: w**4)
    found = ls.surface(problem, torch.full((1, 1), 2.0).double(), points=5, extent=0.6)
    step = 0.3 * 2  # a quarter of the range, in weight space
    assert found.checks.curvature_at_scale == pytest.approx([12 + 2 * step**2])


def test_steps_beyond_a_kink_are_not_taken_for_the_curvature() -> None:
    problem = one_weight(lambda w: w**2 / 2 + 5 * torch.relu(w - 1 - 2e-4))
    found = ls.surface(problem, torch.ones(1, 1).double(), points=3, extent=0.5)
    assert found.checks.axes is not None
    check = found.checks.axes[0]
    assert check.curvature == pytest.approx(1) and check.second_difference == pytest.approx(1)
    assert check.step is not None and check.step < 2e-4


def test_a_wrong_eigenvalue_is_noticed() -> None:
    problem = relu_net()
    axes = ls.hessian_axes(problem)
    wrong = ls.Axes(
        axes.kind,
        axes.directions,
        [type(a)(a.name, 1.0, 1.1 * (a.eigenvalue or 0)) for a in axes.axes],
        [],
        [],
    )
    found = ls.surface(problem, wrong, points=3, extent=0.1)
    assert any("the eigenvalue and a product with its vector differ" in f for f in found.failures)


def test_errors_of_small_eigenvalues_are_relative_to_a_thousandth_of_the_largest() -> None:
    x = torch.diag(torch.tensor([4.0, 0.0])).double()  # H = diag(16, 0)
    model = nn.Linear(2, 1, bias=False).double()
    problem = ls.Problem(model, "mse", (x, torch.zeros(2, 1).double()))
    known = [Axis(f"eigenvalue {v}", 1.0, v) for v in (16.0, 16e-5)]
    axes = ls.Axes("hessian", torch.eye(2).double(), known, [], [])
    checks = curvature_checks(problem, axes, "running")
    assert checks is not None and checks[1].second_difference == pytest.approx(0, abs=1e-8)
    assert checks[1].eigenvalue_error == pytest.approx(16e-5 / 16e-3)
    assert checks[1].relative_error == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("norm_stats", ["batch", "reestimated"])
def test_there_is_no_check_where_surface_and_hessian_see_other_statistics(norm_stats: Any) -> None:
    problem = relu_net()
    axes = ls.random_axes(problem)
    assert curvature_checks(problem, axes, norm_stats) is None
    found = ls.surface(problem, axes, points=3, extent=0.1, norm_stats=norm_stats)
    assert found.checks.axis_curvature_relative_error is None and found.norm_stats == norm_stats
    assert found.failures == []


def test_suggested_range_ends_where_the_loss_is_five_times_the_models() -> None:
    problem, _ = quadratic()
    found = ls.surface(problem, "hessian", points=3)
    for axis in range(2):
        middle = [1, 1]
        ends = []
        for end in (0, 2):
            middle[axis] = end
            ends.append(found.loss[tuple(middle)])
        # to two digits of the range, and ten per cent of the bisection
        assert 5 * found.center * 0.97 <= max(ends) <= 5 * found.center * 1.3
    assert found.notes == []


def test_directions_without_effect_end_at_the_length_of_the_weights() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    problem = ls.Problem(model, "mse", (x, torch.zeros(1, 1).double()))
    found = ls.surface(problem, torch.tensor([[0.0], [1.0]]).double(), points=3)
    assert found.grid[0].tolist() == [-5, 0, 5] and "does not rise to 5 times" in found.notes[0]


def test_the_range_takes_in_the_models_in_the_plane() -> None:
    problem = relu_net()
    others = [relu_net(1).model, relu_net(2).model]
    axes = ls.model_axes(problem, others)
    found = ls.surface(problem, axes, points=5, check=False)
    for marker in found.markers:
        for value, points in zip(marker.coordinates, found.grid, strict=True):
            assert points[0] < value < points[-1]
    assert "running statistics are the first model's everywhere" in found.notes[-1]
    line = ls.surface(problem, ls.model_axes(problem, others[:1]), points=7, extent=[(0.0, 1.0)])
    assert line.loss[-1] == pytest.approx(  # the other's weights, with this model's statistics
        ls.surface(problem, axes, points=(2, 2), extent=[(0, 1), (-1, 0)], check=False).loss[1, 1]
    )


def test_points_that_are_not_finite_are_shown_as_such(tmp_path: Path) -> None:
    problem, _ = quadratic()
    found = ls.surface(problem, torch.eye(5).double()[:, :1], points=3, extent=1e200)
    assert np.isnan(found.loss[[0, 2]]).all() and np.isfinite(found.loss[1])
    found.save(tmp_path / "s.json")
    assert np.isnan(ls.Surface.load(tmp_path / "s.json").loss[0])


def test_a_surface_is_saved_whole(tmp_path: Path) -> None:
    problem = relu_net()
    found = ls.surface(problem, points=(3, 5), extent=0.2, seed=2)
    found.save(tmp_path / "s.json")
    back = ls.Surface.load(tmp_path / "s.json")
    assert to_json(back.to_dict()) == to_json(found.to_dict())
    assert back.loss.shape == (3, 5) and back.axes == found.axes and back.checks == found.checks
    for name in ("a.npz", "a.safetensors"):
        found.save_arrays(tmp_path / name)
    arrays = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(arrays["loss"], found.loss)
    np.testing.assert_array_equal(arrays["grid_2"], found.grid[1])
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["accuracy"], found.accuracy)
    with pytest.raises(ls.InputError, match="end it in .npz or .safetensors"):
        found.save_arrays(tmp_path / "a.txt")


class Stopped(Exception):
    pass


def test_a_stopped_surface_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landscape.checkpoint.SHARE", 1e9)  # write after every step
    problem = relu_net()
    whole = ls.surface(problem, points=9, extent=0.3)
    phases = []

    def stop(phase: str, done: int, expected: int) -> None:
        phases.append(phase)
        if phase == "points" and done > 40:
            raise Stopped

    with pytest.raises(Stopped):
        ls.surface(problem, points=9, extent=0.3, progress=stop, resume=tmp_path / "r")
    count = []
    again = ls.surface(
        problem,
        points=9,
        extent=0.3,
        progress=lambda phase, done, _: count.append(done) if phase == "points" else None,
        resume=tmp_path / "r",
    )
    assert set(phases) == {"eigenvalues", "points"} and count[0] > 30
    np.testing.assert_allclose(again.loss, whole.loss, rtol=1e-6)
    with pytest.raises(ls.InputError, match="belongs to other work: points"):
        ls.surface(problem, points=7, extent=0.3, resume=tmp_path / "r")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"axes": "adam"}, "axes is 'adam': choose"),
        ({"points": 1}, "points is 1: give 2 or more"),
        ({"points": (3, 3, 3)}, "for each of the 2 axes"),
        ({"extent": -1.0}, "extent is -1.0: give a positive number"),
        ({"extent": "far"}, "extent is 'far'"),
        ({"extent": [1.0]}, "for each of the 2 axes"),
        ({"norm_stats": "none"}, "norm_stats is 'none'"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ls.InputError) as refused:
        ls.surface(quadratic()[0], **arguments)
    assert sentence in str(refused.value)


def test_a_loss_of_zero_has_no_multiple() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    problem = ls.Problem(model, "mse", (torch.ones(2, 1).double(), torch.zeros(2, 1).double()))
    with pytest.raises(ls.InputError, match="give --range"):
        ls.surface(problem, ranks=(1,))


def test_gradient_norms_and_eigenvalues_are_those_of_models_at_the_points() -> None:
    problem = relu_net()
    axes = ls.random_axes(problem)
    found = ls.surface(
        problem, axes, points=3, extent=0.3, gradient_norm=True, curvature=2, check=False
    )
    assert found.gradient_norm is not None and found.curvature is not None
    other = problem.separate()
    own = [p.detach().clone() for p in other.selected()]
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        c = torch.tensor([found.curvature.grid[0][i], found.curvature.grid[1][j]])
        parts = problem.layout.split(axes.directions @ c.to(axes.directions))
        with torch.no_grad():
            for p, value, part in zip(other.selected(), own, parts, strict=True):
                p.copy_(value + part)
        values = torch.linalg.eigvalsh(ls.Hessian(other).dense())
        slack = 0.02 * float(values.abs().max())
        assert found.curvature.largest[i, j] == pytest.approx(float(values[-1]), abs=slack)
        assert found.curvature.smallest[i, j] == pytest.approx(float(values[0]), abs=slack)
        slope = float(other.gradient().norm())
        assert found.gradient_norm[2 * i, 2 * j] == pytest.approx(slope, rel=1e-4)
    assert found.gradient_norm.shape == (3, 3) and found.cost.products > 0


def test_nothing_leaks_and_a_seed_means_one_surface() -> None:
    problem = relu_net()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    random = torch.get_rng_state()
    first, again = (ls.surface(problem, "random", points=3, seed=4) for _ in range(2))
    # Up to rounding: how many points and batches at once are the fastest is found out every time.
    np.testing.assert_allclose(first.loss, again.loss, rtol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())
