"""Paths between two models: the losses are those of models on the path, and bends go where theory says."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from leaks import photograph, surroundings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import landscape as ls
from landscape.analyses.curves import blend
from landscape.analyses.eigen import read_vectors
from landscape.analyses.other_model import difference
from landscape.plots.connectivity import plot_connectivity
from landscape.results import to_json


def net(seed: int) -> nn.Module:
    """A network with batch normalisation whose statistics have seen something."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 4),
    ).double()
    for _ in range(3):
        model(seed + 2 * torch.randn(16, 1, 4, 4, dtype=torch.float64))
    return model.eval()


def images(count: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 4, 4, generator=source, dtype=torch.float64)
    return x, torch.randint(4, (count,), generator=source)


def between(a: nn.Module, b: nn.Module, t: float) -> nn.Module:
    """The model at t on the straight line, buffers included, by state dicts alone."""
    other, end = copy.deepcopy(a), b.state_dict()
    mixed = {
        name: value + t * (end[name] - value) if value.is_floating_point() else value
        for name, value in a.state_dict().items()
    }
    other.load_state_dict(mixed)
    return other


def point(start: float = -1.0) -> nn.Module:
    """A model with one weight, which it adds up over its input."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, start)
    return model


class Ring(nn.Module):
    """With inputs and targets of 1 its loss (u² + v² − 1)² is 0 on a circle, and 1 in its middle."""

    def __init__(self, u: float, v: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([u, v], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.at.square().sum()


@pytest.mark.parametrize("norm_stats", ["running", "batch", "reestimated"])
def test_losses_are_those_of_models_on_the_line(norm_stats: Any) -> None:
    a, b, (x, y), unseen = net(0), net(1), images(), images(16, seed=2)
    problem = ls.Problem(a, "cross_entropy", (x, y), batch_size=8)
    found = ls.connectivity(
        problem, b, "linear", points=5, norm_stats=norm_stats, held_out=[unseen]
    )
    assert found.norm_stats == norm_stats and found.trained is None
    for k, t in enumerate(found.t):
        model = between(a, b, t)
        if norm_stats == "reestimated":
            update_bn(list(x.split(8)), model)
        model.train(norm_stats == "batch")
        parts = [copy.deepcopy(model)(part) for part in x.split(8)]
        for data, output, target in (
            (found.linear.train, torch.cat(parts), y),
            (found.linear.held_out, copy.deepcopy(model)(unseen[0]), unseen[1]),
        ):
            assert data is not None and data.accuracy is not None
            expected = float(F.cross_entropy(output.detach(), target))
            assert data.loss[k] == pytest.approx(expected, rel=1e-10)
            right = float((output.argmax(1) == target).double().mean())
            assert data.accuracy[k] == pytest.approx(right)


def test_statistics_are_estimated_anew_unless_another_choice_is_made() -> None:
    problem = ls.Problem(net(0), "cross_entropy", images(), batch_size=8)
    assert ls.connectivity(problem, net(1), "linear", points=3).norm_stats == "reestimated"
    plain = ls.Problem(point(), "mse", (torch.ones(3, 1), torch.zeros(3, 1)))
    assert ls.connectivity(plain, torch.ones(1), "linear", points=3).norm_stats is None


def test_both_ends_are_the_two_models_with_their_own_running_statistics() -> None:
    a, b, data = net(0), net(1), images()
    there = ls.Problem(b, "cross_entropy", data).loss()
    problem = ls.Problem(a, "cross_entropy", data)
    found = ls.connectivity(problem, b, "polygon", points=3, epochs=1, norm_stats="running")
    assert found.trained is not None
    for along in (found.linear, found.trained):
        assert along.train.loss[0] == pytest.approx(problem.loss(), rel=1e-12)
        assert along.train.loss[-1] == pytest.approx(there, rel=1e-12)
    for t, model in ((0.0, a), (1.0, b)):
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(found.state(t)[name], value, rtol=1e-12, atol=1e-14)


def test_state_on_the_path_has_the_loss_that_was_measured() -> None:
    a, b, data = net(0), net(1), images()
    problem = ls.Problem(a, "cross_entropy", data, batch_size=8)
    found = ls.connectivity(problem, b, epochs=2, points=5, norm_stats="running")
    assert found.trained is not None
    for t, loss in zip(found.t, found.trained.train.loss, strict=True):
        model = copy.deepcopy(a)
        model.load_state_dict(found.state(t))
        assert float(F.cross_entropy(model(data[0]).detach(), data[1])) == pytest.approx(
            loss, rel=1e-10
        )


def test_tied_weights_move_under_all_their_names() -> None:
    def tied(value: float) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
        model[1].weight = model[0].weight
        nn.init.constant_(model[0].weight, value)  # type: ignore[arg-type]
        return model

    x = torch.ones(4, 2, dtype=torch.float64)
    problem = ls.Problem(tied(1.0), "mse", (x, x))
    state = ls.connectivity(problem, tied(3.0), "linear", points=3).state(0.5)
    assert set(state) == {"0.weight", "1.weight"}
    assert all(bool((value == 2).all()) for value in state.values())


def test_barriers_by_both_definitions_on_a_tilted_double_well() -> None:
    # L(w) = (w² − 1)² + w / 4 has its wells near ±1 and its hill at 0: with ends at ∓1,
    # L(−1) = −1/4, L(1) = 1/4, and over the line t ↦ (2t − 1)/4 what is left is (w² − 1)².
    data = (torch.ones(6, 1).double(),) * 2
    problem = ls.Problem(point(), lambda out, _: (out**2 - 1) ** 2 + out / 4, data)
    found = ls.connectivity(problem, torch.ones(1), "linear", points=101).linear.train
    w = np.linspace(-1, 1, 101)
    loss = (w**2 - 1) ** 2 + w / 4
    assert found.loss == pytest.approx(loss.tolist(), abs=1e-12)
    assert found.over_line.height == pytest.approx(1.0)
    assert found.over_line.t == pytest.approx(0.5)
    assert found.over_endpoints.height == pytest.approx(float(loss.max()) - 0.25)
    assert found.over_endpoints.t == pytest.approx(float(loss.argmax()) / 100)


def test_a_bowl_has_no_barrier() -> None:
    data = (torch.ones(6, 1).double(), torch.zeros(6, 1).double())
    found = ls.connectivity(ls.Problem(point(), "mse", data), torch.ones(1), "linear", points=5)
    for barrier in (found.linear.train.over_line, found.linear.train.over_endpoints):
        assert (barrier.height, barrier.standard_error, barrier.t) == (0.0, 0.0, 0.0)


def test_error_of_a_barrier_is_that_of_differences_sample_by_sample() -> None:
    source = torch.Generator().manual_seed(5)
    x = torch.randn(60, 1, generator=source, dtype=torch.float64)
    y = x + torch.randn(60, 1, generator=source, dtype=torch.float64) / 4
    ends = torch.tensor([1.0, 0.0]), torch.tensor([-0.7, 0.6])
    problem = ls.Problem(Ring(*ends[0].tolist()), "mse", (x, y), batch_size=16)
    found = ls.connectivity(problem, ends[1], "linear", points=5).linear.train

    def rows(t: float) -> Tensor:
        at = (1 - t) * ends[0].double() + t * ends[1].double()
        return (x * at.square().sum() - y).square()[:, 0]

    for barrier, line in (
        (found.over_line, {0.0: 1 - found.over_line.t, 1.0: found.over_line.t}),
        (found.over_endpoints, {float(found.loss[-1] > found.loss[0]): 1.0}),
    ):
        assert 0 < barrier.t < 1
        mixed = rows(barrier.t) - sum(weight * rows(end) for end, weight in line.items())
        assert barrier.height == pytest.approx(float(mixed.mean()), rel=1e-6)
        assert barrier.standard_error == pytest.approx(float(mixed.std()) / 60**0.5, rel=1e-6)


def test_control_points_mix_to_one_and_the_curves_pass_where_they_must() -> None:
    t = torch.linspace(0, 1, 13)
    for shape in ("linear", "bezier", "polygon"):
        for bends in (1, 2, 5) if shape != "linear" else (0,):
            weights = blend(shape, t, bends)  # type: ignore[arg-type]
            torch.testing.assert_close(weights.sum(1), torch.ones(13).double())
            assert bool((weights >= 0).all())
            assert weights[0, 0] == 1 and weights[-1, -1] == 1
    x = t.double()
    quadratic = torch.stack([(1 - x) ** 2, 2 * x * (1 - x), x**2], dim=1)
    torch.testing.assert_close(blend("bezier", t, 1), quadratic)
    corners = blend("polygon", torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64), 2)
    torch.testing.assert_close(corners, torch.eye(4).double())


def test_bends_are_trained_as_by_plain_autograd_through_the_curve() -> None:
    a, b = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    source = torch.Generator().manual_seed(3)
    x = torch.randn(150, 3, generator=source, dtype=torch.float64)
    y = torch.randint(2, (150,), generator=source)
    problem = ls.Problem(a, "cross_entropy", (x, y), batch_size=100)
    for shape in ("bezier", "polygon"):
        found = ls.connectivity(
            problem, b, shape, bends=2, epochs=4, learning_rate=0.05, points=3, seed=7
        )
        start, end = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (a, b))
        bends = torch.stack([start + k / 3 * (end - start) for k in (1, 2)]).requires_grad_()
        optimizer = torch.optim.Adam([bends], lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        draws = torch.Generator().manual_seed(7)
        for _ in range(4):
            for some in torch.randperm(150, generator=draws).split(64):
                t = float(torch.rand(1, generator=draws, dtype=torch.float64))
                if shape == "bezier":
                    mix = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
                else:
                    mix = [max(0.0, 1 - abs(3 * t - k)) for k in range(4)]
                w = mix[0] * start + mix[1] * bends[0] + mix[2] * bends[1] + mix[3] * end
                output = x[some] @ w[:6].view(2, 3).T + w[6:]
                optimizer.zero_grad()
                F.cross_entropy(output, y[some]).backward()
                optimizer.step()
                schedule.step()
        assert found.curve is not None
        expected = torch.stack([*(bends.detach() - start), end - start], dim=1)
        torch.testing.assert_close(found.curve.points, expected, rtol=1e-9, atol=1e-11)


def test_a_trained_bend_goes_around_the_hill_in_a_ring() -> None:
    # The straight line between two points of the ring far apart climbs the hill, a quadratic curve can stay
    # near the ring.
    data = (torch.ones(64, 1).double(),) * 2
    problem = ls.Problem(Ring(1.0, 0.0), "mse", data)
    for path in ("bezier", "polygon"):
        found = ls.connectivity(problem, Ring(-0.8, 0.6), path, epochs=300, learning_rate=0.05)
        assert found.trained is not None
        assert found.linear.train.over_line.height > 0.75
        assert found.trained.train.over_line.height < 0.2
        assert found.trained.length > found.distance == pytest.approx(3.6**0.5)
        assert not found.notes


def test_length_is_that_of_the_chain_and_of_the_known_parabola() -> None:
    problem = ls.Problem(point(), "mse", (torch.ones(3, 1), torch.zeros(3, 1)))
    curve = ls.connectivity(problem, torch.ones(1), "linear", points=3).curve
    assert curve is not None and curve.length() == pytest.approx(2)
    bent = torch.tensor([[0.5, 1.0], [1.0, 0.0]]).double()  # from (0, 0) over (0.5, 1) to (1, 0)
    chain = type(curve)("polygon", bent, curve.layout, {}, {}, {})
    assert chain.length() == pytest.approx(5**0.5)
    # (t, 2t(1 − t)): ∫√(1 + (2 − 4t)²) dt = (2√5 + asinh 2) / 4
    parabola = type(curve)("bezier", bent, curve.layout, {}, {}, {})
    assert parabola.length() == pytest.approx((2 * 5**0.5 + np.arcsinh(2)) / 4, rel=1e-5)


def test_a_step_of_one_sample_is_left_out_where_it_has_no_variance() -> None:
    def flat(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    x = torch.randn(65, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = ls.Problem(flat(0), "cross_entropy", (x, (x[:, 0] > 0).long()), batch_size=65)
    found = ls.connectivity(problem, flat(1), epochs=2, points=3)  # steps of 64 + 1
    assert found.trained is not None and not found.failures


def test_same_seed_same_path_another_seed_another() -> None:
    problem = ls.Problem(net(0), "cross_entropy", images(70), batch_size=35)
    first, again, other = (
        ls.connectivity(problem, net(1), epochs=2, points=3, seed=seed).trained
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_nothing_of_either_model_or_of_the_process_is_changed() -> None:
    a, b, data = net(0), net(1), images()
    problem = ls.Problem(a, "cross_entropy", data, batch_size=8)
    before = photograph(a), photograph(b), surroundings()
    for norm_stats in ("running", "batch", "reestimated"):
        ls.connectivity(problem, b, epochs=1, points=3, norm_stats=norm_stats, held_out=[data])  # type: ignore[arg-type]
    assert (photograph(a), photograph(b), surroundings()) == before


def test_the_other_model_may_be_a_module_a_state_dict_or_a_vector() -> None:
    b = net(1)
    problem = ls.Problem(net(0), "cross_entropy", images(), batch_size=8)
    vector = nn.utils.parameters_to_vector(b.parameters()).detach()
    found = [
        ls.connectivity(problem, other, "linear", points=3).linear.train.loss
        for other in (b, b.state_dict(), vector)
    ]
    assert found[0] == found[1] == pytest.approx(found[2], rel=1e-12)
    one = ls.connectivity(problem, vector, "linear", points=3, norm_stats="running")
    assert "no running statistics" in one.notes[0]


def test_only_selected_parameters_move_and_the_others_must_agree() -> None:
    a, data = net(0), images()
    b = copy.deepcopy(a)
    nn.init.normal_(b[4].weight)  # type: ignore[index]
    problem = ls.Problem(a, "cross_entropy", data, params="4.*")
    found = ls.connectivity(problem, b, "linear", points=3, norm_stats="running").linear.train
    assert found.loss[-1] == pytest.approx(ls.Problem(b, "cross_entropy", data).loss(), rel=1e-12)
    with pytest.raises(ls.InputError, match=r"'0.weight' is not selected and differs"):
        difference(problem, net(1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("4.weight"), r"'4.weight' is missing, expected \(4, 48\)"),
        (lambda s: s.update({"4.weight": torch.zeros(4, 3)}), r"'4.weight' has shape \(4, 3\)"),
        (lambda s: s.update({"5.bias": torch.zeros(2)}), "'5.bias' is none of this model's"),
        (lambda s: s.update({"1.running_var": torch.ones(2)}), "buffer '1.running_var' .* shape"),
        (lambda s: s["0.bias"].fill_(torch.nan), "not finite"),
    ],
)
def test_another_architecture_is_refused_in_a_sentence(change: Any, sentence: str) -> None:
    problem = ls.Problem(net(0), "cross_entropy", images(), batch_size=8)
    state = {name: value.clone() for name, value in net(1).state_dict().items()}
    change(state)
    with pytest.raises(ls.InputError, match=sentence):
        ls.connectivity(problem, state, "linear")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"path": "spiral"}, "path is 'spiral': choose 'linear', 'bezier', 'polygon'"),
        ({"norm_stats": "none"}, "norm_stats is 'none': choose"),
        ({"points": 2}, "points is 2: 3 or more"),
        ({"bends": 0}, "bends is 0"),
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    problem = ls.Problem(point(), "mse", (torch.ones(3, 1), torch.zeros(3, 1)))
    with pytest.raises(ls.InputError, match=sentence):
        ls.connectivity(problem, torch.ones(1), **arguments)
    with pytest.raises(ls.InputError, match=r"tensor of shape \(2,\): expected \(1,\)"):
        ls.connectivity(problem, torch.ones(2))
    with pytest.raises(ls.InputError, match="the same weights"):
        ls.connectivity(problem, point())


def test_a_loss_that_is_not_finite_is_said_and_no_barrier_is_told() -> None:
    data = (torch.ones(6, 1).double(),) * 2
    problem = ls.Problem(point(), lambda out, _: torch.log(out.abs()), data)
    found = ls.connectivity(problem, torch.ones(1), "linear", points=5)
    assert found.failures == [
        "the training loss on the linear path is not finite at 1 of 5 points, the first at t = 0.5"
    ]
    assert np.isnan(found.linear.train.over_line.height) and np.isnan(found.linear.train.loss[2])


def test_results_and_paths_come_back_from_files(tmp_path: Path) -> None:
    problem = ls.Problem(net(0), "cross_entropy", images(), batch_size=8)
    found = ls.connectivity(problem, net(1), epochs=1, points=4, held_out=[images(8, seed=2)])
    found.save(tmp_path / "c.json")
    again = ls.Connectivity.load(tmp_path / "c.json")
    assert to_json(again.to_dict()) == to_json(found.to_dict())
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "landscape/connectivity/1"
    with pytest.raises(ls.InputError, match="not part of a saved result"):
        again.state()
    found.save_vectors(tmp_path / "v.pt")
    vectors = read_vectors(tmp_path / "v.pt")
    assert found.curve is not None and torch.equal(vectors, found.curve.points)
    found.save_weights(tmp_path / "w.safetensors", t=1.0)
    opened = ls.load_problem(
        tmp_path / "w.safetensors", model=net(2), data=images(), loss="cross_entropy"
    )
    assert opened.loss() == pytest.approx(ls.Problem(net(1), "cross_entropy", images()).loss())


def test_picture_shows_every_path_on_every_data_with_bands(tmp_path: Path) -> None:
    problem = ls.Problem(net(0), "cross_entropy", images(), batch_size=8)
    found = ls.connectivity(problem, net(1), epochs=1, points=4, held_out=[images(8, seed=2)])
    assert found.trained is not None and found.linear.held_out is not None
    figure = found.plot(tmp_path / "c.svg", title="one $ two")
    loss, accuracy = figure.axes
    drawn = [list(line.get_ydata()) for line in loss.get_lines()]
    assert drawn[0] == found.linear.train.loss and drawn[1] == found.linear.held_out.loss
    assert drawn[2] == found.trained.train.loss
    assert len(loss.collections) == len(accuracy.collections) == 4
    assert "barrier" in figure.legends[0].get_texts()[0].get_text()
    regression = ls.Problem(point(), "mse", (torch.ones(3, 1), torch.zeros(3, 1)))
    assert len(ls.connectivity(regression, torch.ones(1), "linear", points=3).plot().axes) == 1
    with pytest.raises(ls.InputError, match="not a result of kind 'landscape/connectivity/1'"):
        plot_connectivity({"schema": "landscape/eigen/1"})
