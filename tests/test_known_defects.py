"""What was measured to be wrong in other tools of this kind, by name: none of it happens here.

The tools are LLA (arXiv:2412.10146), loss-landscape (arXiv:1712.09913), loss-landscapes 3.0.6, Landscaper 1.3.1
(arXiv:2602.07135), loss-landscape-3d 0.1.3, pylandscape 0.1.3, and the code of "Fantastic generalization measures"
(arXiv:1912.02178) as it was published again.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.sharpness.pac_bayes import DROP


def bowl(size: int = 2) -> ls.Problem:
    """L = Σ w²: one row of the identity for every weight."""
    model = nn.Linear(size, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    data = (math.sqrt(size) * torch.eye(size).double(), torch.zeros(size, 1).double())
    return ls.Problem(model, "mse", data)


def normalised_net(*, training: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional classifier with batch normalisation, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    x = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(20):
        model(x)
    return model.train(training), x, torch.arange(30) % 3


def problem_of(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 10) -> ls.Problem:
    return ls.Problem(model, "cross_entropy", (x, y), batch_size=batch_size)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# LLA, and loss-landscapes, from which it has its grid.


def test_zig_zag_grid() -> None:
    # Every other row was shifted by one step, so that the minimum of w₀² + w₁² went to and fro.
    found = ls.surface(bowl(), torch.eye(2).double(), points=(7, 7), extent=1.0)
    assert (found.loss.argmin(axis=1) == 3).all() and (found.loss.argmin(axis=0) == 3).all()
    np.testing.assert_allclose(found.loss, found.loss[::-1, ::-1], rtol=0, atol=1e-15)


def test_random_axes_that_are_not_isotropic() -> None:
    # Entries from [0, 1) have cosine 0.87 to the vector of ones.
    problem = bowl(2000)
    ones = torch.ones(problem.size).double() / problem.size**0.5
    cosines = ones @ ls.random_axes(problem, by=None).directions
    assert float(cosines.abs().max()) < 4 / problem.size**0.5


@pytest.mark.parametrize("by", ["filter", "layer", "model"])
def test_norms_that_are_signed_sums_or_change_while_they_are_used(by: Any) -> None:
    # A signed sum turned directions round; a norm taken anew after every tensor gave 1.21 instead of 1.
    model, x, y = normalised_net()
    problem = problem_of(model, x, y)
    raw = ls.random_axes(problem, by=None, seed=2).directions[:, 0]
    made = ls.random_axes(problem, by=by, seed=2).directions[:, 0]
    parts = [problem.layout.split(d) for d in (raw, made)]
    for before, after, weights in zip(*parts, problem.selected(), strict=True):
        assert bool((before * after >= 0).all())
        if by == "layer":
            assert float(after.norm()) == pytest.approx(float(weights.detach().norm()))
        if by == "filter" and weights.ndim > 1:
            torch.testing.assert_close(after.flatten(1).norm(dim=1), weights.flatten(1).norm(dim=1))
    if by == "model":
        assert float(made.norm()) == pytest.approx(float(flat(model).norm()))


def test_spectral_criterion_that_depends_on_the_length_of_the_run() -> None:
    # (λw)^½ summed over nodes grew with the steps; ghosts of λ₁ came from partial orthogonalisation.
    model, x, y = normalised_net()
    problem = problem_of(model, x, y)
    values = torch.linalg.eigvalsh(ls.Hessian(problem).dense())
    exact = float(-values[values < 0].sum() / values.abs().sum())
    for steps in (20, 40):
        found = ls.spectrum(problem, top=1, probes=8, steps=steps, groups=2)
        energy = found.negative_energy
        assert abs(energy.value - exact) < 4 * energy.standard_error + 1e-3
        for ritz in found.ritz:
            nodes = np.asarray(ritz.nodes)
            assert int((nodes > 0.999 * float(values[-1])).sum()) == 1


def test_trace_that_crashes_and_stops_early() -> None:
    # An empty NumPy array has no truth value; a trace was given without an error, 10 % off.
    model, x, y = normalised_net()
    problem = problem_of(model, x, y)
    found = ls.trace(ls.Hessian(problem), seed=0)
    exact = float(torch.trace(ls.Hessian(problem).dense()))
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-6


def test_power_iteration_that_stops_on_small_changes() -> None:
    model, x, y = normalised_net()
    problem = problem_of(model, x, y)
    values = torch.linalg.eigvalsh(ls.Hessian(problem).dense()).flip(0)
    axes = ls.hessian_axes(problem, (1, 2)).axes
    for axis, value in zip(axes, values, strict=False):
        assert axis.eigenvalue == pytest.approx(float(value), rel=1e-5)


def test_targets_cast_to_integers() -> None:
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(8, 3).double(), torch.rand(8, 2).double()
    found = ls.surface(ls.Problem(model, "mse", (x, y)), "random", points=3)
    assert found.loss[1, 1] == pytest.approx(float(F.mse_loss(model(x), y).detach()))
    soft = y / y.sum(1, keepdim=True)
    found = ls.surface(ls.Problem(model, "cross_entropy", (x, soft)), "random", points=3)
    assert found.loss[1, 1] == pytest.approx(float(F.cross_entropy(model(x), soft).detach()))


def test_running_statistics_that_drift_while_the_grid_is_computed() -> None:
    model, x, y = normalised_net(training=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ls.surface(problem_of(model, x, y), "hessian", points=5, adaptive=True)
    assert model.training and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )


# loss-landscape


def test_eigenvalues_that_grow_with_the_number_of_batches() -> None:
    model, x, y = normalised_net()
    first, other = (ls.hessian_axes(problem_of(model, x, y, size), (1,)) for size in (30, 7))
    assert first.axes[0].eigenvalue == pytest.approx(other.axes[0].eigenvalue, rel=1e-6)


def test_biases_left_out_of_the_hessian() -> None:
    model = nn.Linear(1, 1).double()
    x = torch.zeros(4, 1).double()  # the loss depends on the bias alone: H = diag(0, 2)
    axes = ls.hessian_axes(ls.Problem(model, "mse", (x, x)), (1,))
    assert axes.axes[0].eigenvalue == pytest.approx(2)
    assert axes.directions[:, 0].abs().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_path_and_surface_on_different_scales() -> None:
    # Checkpoints in the plane lie where the surface has their loss, also along directions not of length 1.
    model, x, y = normalised_net()
    problem = problem_of(model, x, y)
    step = torch.randn(problem.size, 2, generator=torch.Generator().manual_seed(2)).double() / 9
    models = []
    for c in (torch.tensor([1.0, 0.5]), torch.tensor([-0.5, 1.0])):
        models.append({name: value.clone() for name, value in model.state_dict().items()})
        parts = problem.layout.split(step @ c.double())
        for name, part in zip(problem.names, parts, strict=True):
            models[-1][name] += part
    for axes in (ls.model_axes(problem, models), ls.trajectory_axes(problem, models)):
        for marker, state in zip(axes.markers[-2:], models, strict=True):
            corner = [(0.0, c) if c > 0 else (c, 0.0) for c in marker.coordinates]
            found = ls.surface(problem, axes, points=2, extent=corner, check=False)
            at = tuple(-1 if c > 0 else 0 for c in marker.coordinates)
            other, _, _ = normalised_net()
            other.load_state_dict(state)
            assert found.loss[at] == pytest.approx(
                float(F.cross_entropy(other(x), y).detach()), rel=1e-6
            )
            assert marker.distance < 1e-6


# loss-landscapes


def test_biases_normalised_more_than_once_and_weights_of_the_user_changed() -> None:
    model, x, y = normalised_net()
    before = flat(model).clone()
    problem = problem_of(model, x, y)
    parts = problem.layout.split(ls.random_axes(problem).directions[:, 0])
    for name, own, part in zip(problem.names, problem.selected(), parts, strict=True):
        if name.endswith("bias"):
            assert float(part.norm()) == pytest.approx(float(own.detach().norm()))
    ls.surface(problem, "random", points=3)
    assert torch.equal(flat(model), before) and all(p.requires_grad for p in model.parameters())


# Landscaper


def test_hessian_axes_that_are_no_eigenvectors_any_more() -> None:
    model, x, y = normalised_net()
    problem = problem_of(model, x, y)
    H = ls.Hessian(problem).dense()
    for ranks in ((1, 2), (1, -1)):
        D = ls.hessian_axes(problem, ranks).directions
        for d in D.T:
            assert float((H @ d - d * (d @ H @ d)).norm()) < 1e-3 * float(H.norm())


def test_noise_on_the_maximum_and_labels_half_a_step_off() -> None:
    extent = [(-1.0, 3.0), (-2.0, 0.5)]
    found = ls.surface(bowl(), torch.eye(2).double(), points=(5, 6), extent=extent)
    np.testing.assert_allclose([axis[[0, -1]] for axis in found.grid], extent)
    a, b = np.meshgrid(*found.grid, indexing="ij")
    np.testing.assert_allclose(found.loss, a**2 + b**2, rtol=1e-13, atol=1e-13)
    again = ls.surface(bowl(), torch.eye(2).double(), points=(5, 6), extent=extent)
    np.testing.assert_allclose(found.loss, again.loss, rtol=1e-14)


def test_values_that_are_not_finite_replaced_by_a_mean() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    problem = ls.Problem(model, "mse", (torch.ones(2, 1).double(), torch.zeros(2, 1).double()))
    found = ls.surface(problem, torch.ones(1, 1).double(), points=3, extent=1e200)
    assert np.isnan(found.loss[[0, 2]]).all() and math.isfinite(found.loss[1])


def test_weights_of_the_quadrature_that_are_no_first_components() -> None:
    # Their sum is 1 and their mean the Rayleigh quotient of the probe, whose mean is the trace.
    problem = bowl(6)  # H = 2 I
    found = ls.spectrum(problem, top=1, probes=4, steps=6, seed=1)
    for ritz in found.ritz:
        weights = np.asarray(ritz.weights)
        assert weights.sum() == pytest.approx(1) and weights @ ritz.nodes == pytest.approx(2)


def test_modules_have_to_be_in_evaluation_mode_beforehand() -> None:
    model, x, y = normalised_net(training=True)
    found = ls.surface(problem_of(model, x, y), "random", points=3)
    assert found.loss[1, 1] == pytest.approx(float(F.cross_entropy(model.eval()(x), y).detach()))


# loss-landscape-3d and pylandscape


def test_hessian_axes_of_batch_normalisation_crash_and_random_ones_move_its_statistics() -> None:
    model, x, y = normalised_net(training=True)
    for axes in ("hessian", "random"):
        found = ls.surface(problem_of(model, x, y), axes, points=5)  # type: ignore[arg-type]
        assert np.isfinite(found.loss).all() and model.training


def test_hessian_surface_that_is_constant() -> None:
    model, x, y = normalised_net()
    found = ls.surface(problem_of(model, x, y), "hessian", points=5)
    assert np.ptp(found.loss) > found.center


# "Fantastic generalization measures", published again


def test_variance_taken_for_a_standard_deviation() -> None:
    """Of a model with one weight, the accuracy at a given σ is known from the normal distribution."""
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1], [-0.1]]))
    x = torch.ones(40, 1).double()
    problem = ls.Problem(model, "cross_entropy", (x, torch.zeros(40, dtype=torch.long)))
    found = ls.sharpness(problem, measures="pac-bayes", draws=200)["PAC-Bayes flatness"]
    # All samples are wrong where u₁ − u₂ < −0.2, with u₁ − u₂ ~ N(0, 2σ²): P = 0.1.
    sigma = 0.2 / math.sqrt(2) / 1.2815515655446004
    share = 0.5 * math.erfc(0.2 / math.sqrt(2) / sigma / math.sqrt(2))
    assert share == pytest.approx(DROP)
    assert found.value == pytest.approx(sigma**-2, rel=0.6)
    assert found.rho == pytest.approx(sigma, rel=0.3)  # three standard errors; σ² is 0.012
