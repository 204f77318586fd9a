"""Axes are what their names say, and the weights' scale is put on them by the published rules."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.axes import given_axes, scaled
from landscape.analyses.normalisation import Normalisation, normalised


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).double()


def problem_of(model: nn.Module | None = None) -> ls.Problem:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(20, 1, 4, 4, generator=source, dtype=torch.float64)
    return ls.Problem(model or small_net(), "cross_entropy", (x, torch.arange(20) % 3))


def gram(axes: ls.Axes) -> Tensor:
    return axes.directions.T @ axes.directions


@pytest.mark.parametrize("ranks", [(1, 2), (1, -1), (-2, 3), (2,)])
def test_hessian_axes_are_eigenvectors_of_the_chosen_ranks(ranks: tuple[int, ...]) -> None:
    problem = problem_of()
    values, vectors = torch.linalg.eigh(ls.Hessian(problem).dense())
    found = ls.hessian_axes(problem, ranks)
    for axis, d, rank in zip(found.axes, found.directions.T, ranks, strict=True):
        place = -rank if rank > 0 else -rank - 1
        assert axis.eigenvalue == pytest.approx(float(values[place]), rel=1e-6)
        # sin of the angle to the eigenvector is bounded, and the length is 1
        off = (1 - float(d @ vectors[:, place]) ** 2) ** 0.5
        assert axis.vector_error is not None and off <= axis.vector_error + 1e-7
        assert float(d.norm()) == pytest.approx(1, abs=1e-12) and axis.length == 1
    assert found.failures == [] and found.cost is not None and found.cost.products > 0


def test_hessian_axes_are_never_rescaled() -> None:
    problem = problem_of()
    with pytest.raises(ls.InputError, match="no longer be eigenvectors"):
        scaled(problem, ls.hessian_axes(problem, (1,)), "filter")


@pytest.mark.parametrize("ranks", [(), (0, 1), (1, 1), (60, -60)])
def test_ranks_that_do_not_exist_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(ls.InputError, match="give different ranks"):
        ls.hessian_axes(problem_of(), ranks)


def test_random_axes_are_gaussian_orthogonal_and_those_of_their_seed() -> None:
    model = nn.Linear(3000, 1).double()
    problem = ls.Problem(model, "mse", (torch.randn(2, 3000).double(), torch.zeros(2, 1).double()))
    found = ls.random_axes(problem, by=None, seed=3)
    torch.testing.assert_close(gram(found), torch.eye(2).double(), rtol=0, atol=1e-12)
    z = found.directions * problem.size**0.5
    # Uniform entries on [0, 1), a defect of other tools, have mean 0.87 here and kurtosis 1.8.
    assert float(z.mean(0).abs().max()) < 4 / problem.size**0.5
    assert float(z.pow(4).mean()) == pytest.approx(3, abs=0.5)
    assert torch.equal(ls.random_axes(problem, by=None, seed=3).directions, found.directions)
    assert not torch.equal(ls.random_axes(problem, by=None, seed=4).directions, found.directions)


def by_hand(model: nn.Module, d: Tensor, by: Normalisation, vectors: str) -> Tensor:
    """The rules of Li et al. (2018), filter by filter in plain loops."""
    parts, place = [], 0
    for p in model.parameters():
        own = d[place : place + p.numel()].reshape(p.shape).clone()
        place += p.numel()
        if p.ndim < 2 and vectors != "scale":
            own = own if vectors == "keep" else own * 0
        elif by == "weight":
            own = own * p.detach().abs()
        elif by == "filter" and p.ndim > 1:
            for f in range(p.shape[0]):
                own[f] *= p[f].detach().norm() / own[f].norm()
        elif by in ("filter", "layer"):
            own *= p.detach().norm() / own.norm()
        parts.append(own.reshape(-1))
    found = torch.cat(parts)
    if by == "model":
        whole = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        found *= whole.norm() / found.norm()
    return found


@pytest.mark.parametrize("vectors", ["scale", "keep", "leave out"])
@pytest.mark.parametrize("by", ["filter", "layer", "weight", "model"])
def test_normalisation_follows_the_published_rules(by: Normalisation, vectors: Any) -> None:
    model = small_net()
    problem = problem_of(model)
    d = torch.randn(problem.size, generator=torch.Generator().manual_seed(5)).double()
    found = normalised(problem, d, by, vectors=vectors)
    torch.testing.assert_close(found, by_hand(model, d, by, vectors), rtol=1e-12, atol=1e-14)


def test_filters_without_weights_or_direction_stay_where_they_are() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    problem = ls.Problem(model, "mse", (torch.ones(2, 2).double(), torch.ones(2, 2).double()))
    d = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    assert normalised(problem, d, "filter").tolist() == [0, 0, 0, 0]


def test_gradient_axes_span_gradient_and_its_change() -> None:
    problem = problem_of()
    found = ls.gradient_axes(problem)
    g = problem.gradient()
    torch.testing.assert_close(found.directions[:, 0], g / g.norm())
    Hg = ls.Hessian(problem).dense() @ g
    inside = found.directions @ (found.directions.T @ Hg)
    torch.testing.assert_close(inside, Hg)
    torch.testing.assert_close(gram(found), torch.eye(2).double(), rtol=0, atol=1e-12)


def test_optimizer_axes_are_the_moments_of_adam() -> None:
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    problem = problem_of(model)
    for x, y in problem.data:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    found = ls.optimizer_axes(problem, optimizer)
    state = [optimizer.state[p] for p in model.parameters()]
    m = torch.cat([s["exp_avg"].reshape(-1) for s in state])
    v = torch.cat([s["exp_avg_sq"].reshape(-1) for s in state])
    torch.testing.assert_close(found.directions[:, 0], m / m.norm())
    inside = found.directions @ (found.directions.T @ v.sqrt())
    torch.testing.assert_close(inside, v.sqrt())
    only = ls.Problem(model, "cross_entropy", problem.data, params="4.*")  # a part of the model
    last = torch.cat([s["exp_avg"].reshape(-1) for s in state[-2:]])
    torch.testing.assert_close(
        ls.optimizer_axes(only, optimizer.state_dict()).directions[:, 0], last / last.norm()
    )
    with pytest.raises(ls.InputError, match="no second moments"):
        ls.optimizer_axes(problem, torch.optim.SGD(model.parameters(), lr=0.1))


def path_of(model: nn.Module, steps: int) -> list[dict[str, Tensor]]:
    """States along a bent path that ends at the model."""
    torch.manual_seed(7)
    a, b, c = (torch.randn(sum(p.numel() for p in model.parameters())).double() for _ in range(3))
    states = []
    for t in torch.linspace(1, 0, steps).tolist():
        other = copy.deepcopy(model)
        own = nn.utils.parameters_to_vector(other.parameters())
        moved = own + t * a + 0.5 * t**2 * b + 0.01 * t**3 * c
        nn.utils.vector_to_parameters(moved, other.parameters())
        states.append(other.state_dict())
    return states


def test_trajectory_axes_are_principal_directions_and_tell_the_distance_from_the_plane() -> None:
    model = small_net()
    problem = problem_of(model)
    states = path_of(model, 6)
    found = ls.trajectory_axes(problem, states)
    own = problem.weights()
    names = [name for name, _ in model.named_parameters()]
    offsets = torch.stack([torch.cat([s[n].reshape(-1) for n in names]) - own for s in states])
    _, S, Vh = torch.linalg.svd(offsets, full_matrices=False)
    for i in range(2):
        assert abs(float(found.directions[:, i] @ Vh[i])) == pytest.approx(1, abs=1e-9)
        assert found.axes[i].explained == pytest.approx(float(S[i] ** 2 / S.square().sum()))
    for marker, offset in zip(found.markers, offsets, strict=True):
        c = torch.tensor(marker.coordinates, dtype=torch.float64)
        torch.testing.assert_close(found.directions.T @ offset, c, rtol=1e-9, atol=1e-9)
        rest = float((offset - found.directions @ c).norm())
        assert marker.distance == pytest.approx(rest, abs=1e-8)
    assert max(marker.distance for marker in found.markers) > 1e-3
    assert found.markers[-1].coordinates == pytest.approx([0, 0], abs=1e-9)


def test_line_and_plane_through_models() -> None:
    model, second, third = small_net(0), small_net(1), small_net(2)
    problem = problem_of(model)
    line = ls.model_axes(problem, [second])
    assert line.markers[0].coordinates == pytest.approx([1.0])
    assert line.markers[0].distance == pytest.approx(0, abs=1e-9)
    plane = ls.model_axes(problem, [second, third.state_dict()], names=["b", "c"])
    assert plane.markers[0].coordinates == pytest.approx([1.0, 0.0])
    c = torch.tensor(plane.markers[1].coordinates, dtype=torch.float64)
    parameters = [nn.utils.parameters_to_vector(m.parameters()) for m in (model, third)]
    expected = (parameters[1] - parameters[0]).detach()
    torch.testing.assert_close(plane.directions @ c, expected)
    assert [marker.name for marker in plane.markers] == ["b", "c"]
    assert plane.largest_cosine < 1e-12


def test_checkpoints_of_other_models_are_refused() -> None:
    problem = problem_of()
    with pytest.raises(ls.InputError, match=r"'0.weight' is missing, expected \(2, 1, 3, 3\)"):
        ls.model_axes(problem, [nn.Linear(2, 2)])
    with pytest.raises(ls.InputError, match="'4.weight' has shape"):
        ls.model_axes(problem, [small_net().state_dict() | {"4.weight": torch.zeros(3, 9)}])
    with pytest.raises(ls.InputError, match="the difference to model 1 is zero"):
        ls.model_axes(problem, [problem.model])
    with pytest.raises(ls.InputError, match="on a line"):
        ls.trajectory_axes(problem, [problem.model, small_net(1)])


def test_given_directions_are_taken_as_they_are() -> None:
    problem = problem_of()
    D = 3 * torch.eye(problem.size).double()[:, :2]
    found = given_axes(problem, D)
    assert torch.equal(found.directions, D) and [a.length for a in found.axes] == [3, 3]
    with pytest.raises(ls.InputError, match="zero or not finite"):
        given_axes(problem, D * torch.tensor([0.0, 1.0]))
