"""Pruning: against closed forms in dense float64, and what it must never do."""

import copy
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from leaks import photograph, surroundings
from safetensors.torch import load_file
from torch import Tensor, nn

import landscape as ls
from landscape.analyses import pruning_choice as choice
from landscape.analyses.fine_tuning import fine_tune
from landscape.analyses.quality import quality
from landscape.errors import InputError
from landscape.operators import row_storage
from landscape.results import to_json


class Net(nn.Module):
    """Convolution, batch normalisation with running statistics, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 4 * 4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(torch.tanh(self.norm(self.conv(x))).flatten(1))))


def net_problem(dtype: torch.dtype = torch.float32, **options: Any) -> ls.Problem:
    torch.manual_seed(0)
    model = Net().to(dtype)
    model.norm.running_mean.uniform_(-0.1, 0.1)
    model.norm.running_var.uniform_(0.5, 1.5)
    x, y = torch.randn(48, 1, 4, 4, dtype=dtype), torch.arange(48) % 3
    return ls.Problem(model, "cross_entropy", (x, y), batch_size=20, **options)


def sample_gradients(model: nn.Module, data: tuple[Tensor, Tensor], names: list[str]) -> Tensor:
    """Per-sample gradients, one backward pass each, in float64 and evaluation mode."""
    model = copy.deepcopy(model).double().eval()
    parameters = [dict(model.named_parameters())[name] for name in names]
    rows = []
    for x, y in zip(*data, strict=True):
        loss = nn.functional.cross_entropy(model(x[None].double()), y[None])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def all_data(problem: ls.Problem) -> tuple[Tensor, Tensor]:
    x, y = zip(*problem.data, strict=True)
    return torch.cat(x), torch.cat(y)


def dense_step(weights: Tensor, G: Tensor, damping: float, prunable: Tensor, count: int) -> Tensor:
    """One step by explicit matrices: the weights after; those that were zero and prunable stay."""
    free = ~(prunable & (weights == 0))
    F = damping * torch.eye(len(weights)).double() + G.T @ G / len(G)
    inverse = torch.zeros_like(F)
    inverse[free[:, None] & free] = torch.linalg.inv(F[free][:, free]).reshape(-1)
    saliency = weights**2 / (2 * inverse.diagonal())
    saliency[~(free & prunable)] = math.inf
    S = saliency.argsort()[:count]
    after = weights - inverse[:, S] @ torch.linalg.solve(inverse[S][:, S], weights[S])
    after[S] = 0
    return after


def flat(state: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([state[name].double().reshape(-1) for name in names])


def prunable_of(problem: ls.Problem) -> Tensor:
    parts = [torch.full((p.numel(),), p.ndim > 1) for p in problem.selected()]
    return torch.cat(parts)


# --- the mathematics ---------------------------------------------------------------------------------


def test_steps_match_dense_matrices_with_gradients_computed_anew() -> None:
    """Two steps in float64; all samples are used, so nothing is random."""
    problem = net_problem(torch.float64)
    found = ls.prune(problem, 0.6, recompute=2, gradients=48, damping=1e-3)
    names, prunable = problem.names, prunable_of(problem)
    total = int(prunable.sum())
    model = copy.deepcopy(problem.model)
    weights = flat(model.state_dict(), names)
    first = round((1 - 0.4**0.5) * total)
    for count in (first, round(0.6 * total) - first):
        G = sample_gradients(model, all_data(problem), names)
        weights = dense_step(weights, G, 1e-3, prunable, count)
        torch.nn.utils.vector_to_parameters(
            weights, [dict(model.named_parameters())[n] for n in names]
        )
    assert found.state is not None
    # The condition of F is about 1e4 here: 1e-16 · 1e4, and some room.
    assert torch.allclose(flat(found.state, names), weights, rtol=1e-8, atol=1e-10)
    assert found.pruned == round(0.6 * total)


def test_prediction_is_the_true_rise_where_the_model_of_the_loss_is_exact() -> None:
    """Least squares with residuals ±1/√2 at the optimum: gᵢgᵢᵀ averages to the Hessian, and ∇L = 0."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=source, dtype=torch.float64)
    x = torch.cat([x, x])
    model = nn.Linear(6, 1, bias=False).double()
    residual = math.sqrt(0.5) * torch.cat([torch.ones(40, 1), -torch.ones(40, 1)])
    y = model(x).detach() + residual.double()
    problem = ls.Problem(model, "mse", (x, y))
    found = ls.prune(problem, 0.5, recompute=1, gradients=80, damping=1e-10)
    assert found.predicted_increase is not None and found.masks is not None
    rise = found.after.loss - found.before.loss
    assert rise > 0.01
    assert found.predicted_increase == pytest.approx(rise, rel=1e-6)
    kept = found.masks["weight"][0]
    refit = torch.linalg.lstsq(x[:, kept], y).solution[:, 0]
    assert found.state is not None
    assert torch.allclose(found.state["weight"][0, kept], refit, rtol=1e-6)


def test_diagonal_removes_least_weights_by_the_fisher_diagonal_and_moves_nothing() -> None:
    problem = net_problem(torch.float64)
    found = ls.prune(problem, 0.5, method="diagonal", recompute=1, gradients=48, damping=1e-6)
    G = sample_gradients(problem.model, all_data(problem), problem.names)
    weights, prunable = flat(problem.model.state_dict(), problem.names), prunable_of(problem)
    saliency = 0.5 * weights**2 * (1e-6 + G.square().mean(0))
    count = round(0.5 * int(prunable.sum()))
    gone = saliency.masked_fill(~prunable, math.inf).argsort()[:count]
    expected = weights.clone()
    expected[gone] = 0
    assert found.state is not None
    assert torch.equal(flat(found.state, problem.names), expected)
    assert found.predicted_increase == pytest.approx(float(saliency[gone].sum()), rel=1e-9)


def test_magnitude_removes_the_smallest_weights_and_moves_nothing() -> None:
    problem = net_problem()
    found = ls.prune(problem, 0.7, method="magnitude", recompute=3)
    weights, prunable = flat(problem.model.state_dict(), problem.names), prunable_of(problem)
    limit = weights[prunable].abs().sort().values[round(0.7 * int(prunable.sum()))]
    assert found.state is not None
    expected = weights * ~(prunable & (weights.abs() < limit))
    assert torch.equal(flat(found.state, problem.names), expected)
    assert found.predicted_increase is None and not found.magnitude_steps
    assert found.gradients is None and found.damping is None


def test_structured_pruning_removes_the_channels_of_least_exact_saliency_per_weight() -> None:
    problem = net_problem(torch.float64)
    found = ls.prune(problem, 0.3, structured=True, recompute=1, gradients=48, damping=1e-3)
    G = sample_gradients(problem.model, all_data(problem), problem.names)
    F = 1e-3 * torch.eye(problem.size).double() + G.T @ G / 48
    inverse, weights = torch.linalg.inv(F), flat(problem.model.state_dict(), problem.names)
    layers = choice.prunable_layers(problem, None)
    channels = [where for layer in layers for where in layer.channels()]
    rises = {}
    for where in channels:
        w = weights[where]
        rises[where.start] = float(0.5 * w @ torch.linalg.solve(inverse[where, where], w)) / len(w)
    assert found.state is not None
    after = flat(found.state, problem.names)
    gone = [w.start for w in channels if bool((after[w] == 0).all())]
    kept = [w.start for w in channels if bool((after[w] != 0).all())]
    assert len(gone) + len(kept) == len(channels) and gone
    assert max(rises[start] for start in gone) < min(rises[start] for start in kept)
    assert abs(found.sparsity - 0.3) <= 64 / found.prunable / 2  # half of the widest channel
    S = torch.cat([torch.arange(w.start, w.stop) for w in channels if w.start in gone])
    joint = weights - inverse[:, S] @ torch.linalg.solve(inverse[S][:, S], weights[S])
    joint[S] = 0
    assert torch.allclose(after, joint, rtol=1e-8, atol=1e-10)


# --- which weights, and how many ---------------------------------------------------------------------


def test_every_layer_gets_the_sparsity_and_the_rest_stays() -> None:
    problem = net_problem()
    found = ls.prune(problem, 0.75, scope="layer", recompute=2, gradients=16)
    assert [layer.name for layer in found.layers] == ["conv.weight", "hidden.weight", "head.weight"]
    assert all(layer.pruned == round(0.75 * layer.weights) for layer in found.layers)
    assert found.state is not None and found.masks is not None
    assert bool((found.state["hidden.bias"] != 0).all())
    for name, mask in found.masks.items():
        assert torch.equal(mask, found.state[name] != 0)


@pytest.mark.parametrize("method", ["mfac", "magnitude"])
@pytest.mark.parametrize("recompute", [1, 3])
def test_pattern_leaves_two_of_four_inputs(method: Any, recompute: int) -> None:
    problem = net_problem()
    found = ls.prune(problem, method=method, pattern=(2, 4), recompute=recompute, gradients=16)
    assert found.masks is not None
    for name in ("hidden.weight", "head.weight"):
        groups = found.masks[name].reshape(-1, 4).sum(1)
        assert bool((groups == 2).all())
    assert bool(found.masks["conv.weight"].all())  # one input is no multiple of four


def test_pattern_runs_along_the_inputs_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(8, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    problem = ls.Problem(model, "cross_entropy", (torch.randn(9, 8, 4, 4), torch.arange(9) % 2))
    found = ls.prune(problem, pattern=(1, 4), prunable="0.weight", recompute=2, gradients=9)
    assert found.masks is not None
    groups = found.masks["0.weight"].view(2, 2, 4, 9).sum(2)
    assert bool((groups == 1).all())
    assert found.sparsity == 0.75


def test_only_what_is_named_is_pruned_and_only_what_is_selected_moves() -> None:
    problem = net_problem(params=["hidden.*", "head.*"])
    before = copy.deepcopy(problem.model.state_dict())
    found = ls.prune(problem, 0.5, prunable="head.weight", recompute=2, gradients=16)
    assert found.state is not None
    assert [layer.name for layer in found.layers] == ["head.weight"]
    assert found.pruned == 12
    for name in ("conv.weight", "conv.bias", "norm.weight", "norm.running_mean"):
        assert torch.equal(found.state[name], before[name])
    for name in ("hidden.weight", "hidden.bias", "head.bias"):
        assert not torch.equal(found.state[name], before[name])


def test_tied_weights_are_pruned_once_and_stay_tied() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    problem = ls.Problem(model, "cross_entropy", (torch.randn(12, 4), torch.arange(12) % 4))
    found = ls.prune(problem, 0.5, recompute=2, gradients=12)
    assert found.prunable == 16 and found.pruned == 8
    pruned = found.apply(model)
    assert pruned[2].weight is pruned[0].weight
    assert int((pruned[0].weight == 0).sum()) == 8


def test_a_pruned_model_is_pruned_further() -> None:
    problem = net_problem()
    half = ls.prune(problem, 0.5, recompute=2, gradients=16)
    again = ls.Problem(half.apply(problem.model), "cross_entropy", problem.data)
    more = ls.prune(again, 0.8, recompute=2, gradients=16)
    assert half.masks is not None and more.masks is not None
    assert all(bool((half.masks[n] | ~more.masks[n]).all()) for n in half.masks)
    assert more.steps[0].sparsity == half.sparsity
    with pytest.raises(InputError, match=r"50 % of the prunable weights are zero already"):
        ls.prune(again, 0.3)


@pytest.mark.parametrize("method", ["mfac", "magnitude", "diagonal"])
def test_channels_go_where_single_weights_are_gone(method: Any) -> None:
    problem = net_problem()
    thin = ls.prune(problem, 0.4, method="magnitude", recompute=1)
    again = ls.Problem(thin.apply(problem.model), "cross_entropy", problem.data)
    found = ls.prune(again, 0.7, method=method, structured=True, recompute=2, gradients=16)
    assert thin.masks is not None and found.masks is not None
    for name, mask in found.masks.items():
        for now, before in zip(mask, thin.masks[name], strict=True):
            assert not bool(now.any()) or torch.equal(now, before)
    assert abs(found.sparsity - 0.7) <= 64 / found.prunable / 2


def test_several_sparsities_are_reached_on_the_way() -> None:
    found = ls.prune(net_problem(), [0.5, 0.8], recompute=2, gradients=16)
    reached = [round(step.sparsity, 2) for step in found.steps]
    assert reached == [0.0, 0.29, 0.5, 0.68, 0.8]
    assert [step.sparsity for step in found.magnitude_steps] == [s.sparsity for s in found.steps]


def test_ladder_removes_the_same_share_each_time() -> None:
    rungs = choice.ladder(0.2, 0.9, 16)
    left = [0.8, *(1 - rung for rung in rungs)]
    ratios = [b / a for a, b in pairwise(left)]
    assert rungs[-1] == 0.9 and len(rungs) == 16
    assert ratios == pytest.approx([(0.1 / 0.8) ** (1 / 16)] * 16)


def test_the_last_weight_and_the_last_channel_of_a_layer_stay() -> None:
    one = ls.prune(net_problem(), 0.99, scope="layer", method="magnitude", recompute=1)
    assert [layer.weights - layer.pruned for layer in one.layers] == [1, 5, 1]
    rows = ls.prune(net_problem(), 0.9, scope="layer", structured=True, recompute=1, gradients=16)
    assert rows.masks is not None
    assert [int(mask.flatten(1).any(1).sum()) for mask in rows.masks.values()] == [1, 1, 1]


class Scaled(nn.Module):
    """Parameters without dimensions, and without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.none = nn.Parameter(torch.empty(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale + self.none.sum()

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 1}


@pytest.mark.parametrize("structured", [False, True])
def test_parameters_of_any_shape_are_pruned(structured: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Scaled()
    problem = ls.Problem(model, "cross_entropy", (torch.randn(9, 4), torch.arange(9) % 4))
    found = ls.prune(problem, 0.5, prunable="*", structured=structured, recompute=2)
    assert found.prunable == 21 and 8 <= found.pruned <= 12
    found.save_weights(tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == dict(model.named_parameters()).keys()
    assert "_extra_state" in found.apply(model).state_dict()


def test_a_model_of_zeros_is_refused() -> None:
    problem = net_problem()
    for parameter in problem.model.parameters():
        parameter.data.zero_()
    for options in ({"sparsity": 0.5}, {"pattern": (2, 4)}):
        with pytest.raises(InputError, match="nothing is left to be removed"):
            ls.prune(problem, **options)  # type: ignore[arg-type]


def test_gradients_for_which_there_is_no_room_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"recompute": 2, "gradients": 16, "compare": False}
    here = ls.prune(net_problem(), 0.5, structured=True, **options)
    monkeypatch.setattr(row_storage, "available_bytes", lambda *device: 0)  # leaves a file
    there = ls.prune(net_problem(), 0.5, structured=True, **options)
    assert here.state is not None and there.state is not None
    assert all(torch.equal(here.state[name], there.state[name]) for name in here.state)


# --- training in between -----------------------------------------------------------------------------


def test_training_between_steps_mends_what_pruning_broke() -> None:
    options: dict[str, Any] = {"recompute": 2, "gradients": 16, "damping": 1e-3}
    once = ls.prune(net_problem(), 0.8, **options)
    trained = ls.prune(
        net_problem(), 0.8, schedule="gradual", epochs_per_step=20, learning_rate=1e-2, **options
    )
    assert trained.after.loss < 0.8 * once.after.loss
    assert trained.magnitude_steps[-1].quality.loss < once.magnitude_steps[-1].quality.loss
    assert trained.masks is not None and trained.state is not None
    for name, mask in trained.masks.items():
        assert not bool(trained.state[name][~mask].any())
    assert trained.sparsity == once.sparsity
    assert torch.equal(trained.state["norm.running_mean"], net_problem().model.norm.running_mean)


def test_training_is_adam_over_shuffled_samples_with_pruned_weights_at_zero() -> None:
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, k, generator=source, dtype=torch.float64) for k in (4, 3))
    problem = ls.Problem(nn.Linear(4, 3).double(), "mse", (x, y), batch_size=30)
    model, mask = copy.deepcopy(problem.model), torch.arange(15) % 3 > 0
    fine_tune(problem, mask, epochs=2, learning_rate=0.1, seed=7)
    optimizer, source = torch.optim.Adam(model.parameters(), lr=0.1), source.manual_seed(7)
    for _ in range(2):
        for rows in torch.randperm(100, generator=source).split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            model.weight.data *= mask[:12].view(3, 4)
            model.bias.data *= mask[12:]
    for found, expected in zip(problem.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10)
    options: dict[str, Any] = {"method": "magnitude", "schedule": "gradual", "recompute": 1}
    one, other = (ls.prune(problem, 0.5, seed=seed, **options) for seed in (1, 2))
    assert one.after.loss != other.after.loss


def test_training_that_diverges_ends_the_steps_with_its_numbers_kept() -> None:
    source = torch.Generator().manual_seed(0)
    data = torch.randn(9, 4, generator=source), torch.randn(9, 4, generator=source)
    problem = ls.Problem(nn.Linear(4, 4), "mse", data)
    options: dict[str, Any] = {"schedule": "gradual", "learning_rate": 1e30, "epochs_per_step": 2}
    found = ls.prune(problem, 0.5, recompute=3, **options)
    assert len(found.steps) == 2 and found.masks is not None and found.state is not None
    assert "lower the learning rate" in found.failures[0]
    assert torch.equal(found.state["weight"] == 0, ~found.masks["weight"])


def test_own_training_is_given_masks_which_are_enforced_after_it() -> None:
    seen = []

    def careless(model: nn.Module, masks: dict[str, Tensor]) -> None:
        seen.append(sum(int((~mask).sum()) for mask in masks.values()))
        torch.rand(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1

    problem = net_problem()
    around = surroundings()
    found = ls.prune(
        problem, 0.5, method="magnitude", schedule="gradual", recompute=2, fine_tune=careless
    )
    assert surroundings() == around
    assert len(seen) == 2 and seen[1] == found.pruned
    assert found.masks is not None and found.state is not None
    for name, mask in found.masks.items():
        assert not bool(found.state[name][~mask].any())
    assert bool((found.state["conv.bias"] > 1).all())


# --- contracts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": "gradual"}, {"structured": True}, {"per": "batch", "gradients": 3}],
)
def test_nothing_of_the_users_changes(options: dict[str, Any]) -> None:
    problem = net_problem()
    problem.model.train()
    problem.model.head.bias.grad = torch.ones(3)
    before, around = photograph(problem.model), surroundings()
    ls.prune(problem, 0.5, **{"recompute": 2, "gradients": 16} | options)
    assert photograph(problem.model) == before
    assert surroundings() == around


def test_same_seed_same_weights() -> None:
    options: dict[str, Any] = {"recompute": 2, "gradients": 16, "schedule": "gradual"}
    one, two, other = (ls.prune(net_problem(), 0.5, seed=s, **options) for s in (1, 1, 2))
    assert one.state is not None and two.state is not None and other.state is not None
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)
    assert not torch.equal(one.state["conv.weight"], other.state["conv.weight"])


def test_quality_is_that_of_the_applied_model_on_both_kinds_of_data() -> None:
    problem = net_problem()
    torch.manual_seed(1)
    unseen = (torch.randn(30, 1, 4, 4), torch.arange(30) % 3)
    found = ls.prune(problem, 0.5, recompute=2, gradients=16, held_out=unseen)
    pruned = found.apply(problem.model).eval()
    for model, seen, new in (
        (problem.model.eval(), found.before, found.held_out_before),
        (pruned, found.after, found.held_out_after),
    ):
        for (x, y), had in ((all_data(problem), seen), (unseen, new)):
            assert had is not None
            with torch.no_grad():
                output = model(x).detach()
            assert had.loss == pytest.approx(
                float(nn.functional.cross_entropy(output, y)), rel=1e-5
            )
            assert had.accuracy == pytest.approx(float((output.argmax(1) == y).float().mean()))
    assert found.steps[-1].quality == found.held_out_after


def test_accuracy_counts_tokens_that_are_not_ignored() -> None:
    model = nn.Embedding(4, 4)
    model.weight.data.copy_(torch.eye(4))
    words = torch.tensor([[0, 1, 2], [3, 3, 3]])
    labels = torch.tensor([[0, 1, 3], [3, -100, -100]])
    found = quality(ls.Problem(model, "token_cross_entropy", [(words, labels)]))
    assert found.accuracy == 0.75
    expected = nn.functional.cross_entropy(model(words).flatten(0, 1), labels.flatten())
    assert found.loss == pytest.approx(expected.item())
    assert (
        quality(ls.Problem(nn.Linear(2, 1), "mse", (torch.ones(3, 2), torch.ones(3, 1)))).accuracy
        is None
    )


def test_accuracy_of_labels_of_two_kinds_goes_by_the_sign_of_the_logit() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    x, y = torch.tensor([[-1.0], [0.2], [0.1], [3.0]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert quality(ls.Problem(model, "bce_with_logits", (x, y))).accuracy == 0.75


def test_closures_are_pruned_by_batch_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 2)

    def closure(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        x, y = batch
        return (model(x) - y).square().mean(), y.numel()

    data = [(torch.randn(6, 5), torch.randn(6, 2)) for _ in range(4)]
    problem = ls.Problem.from_closure(model, closure, data)
    found = ls.prune(problem, 0.5, per="batch", gradients=4, recompute=2)
    assert found.pruned == 5 and found.before.accuracy is None


def test_result_round_trips_and_its_tensors_open_as_weights(tmp_path: Path) -> None:
    problem = net_problem()
    found = ls.prune(problem, 0.5, recompute=2, gradients=16)
    found.save(tmp_path / "p.json")
    again = ls.Pruning.load(tmp_path / "p.json")
    assert json.loads(to_json(again.to_dict())) == json.loads(to_json(found.to_dict()))
    assert again.sparsity == found.sparsity
    with pytest.raises(InputError, match="not part of a saved result"):
        again.save_masks(tmp_path / "m.safetensors")
    found.save_weights(tmp_path / "w.safetensors")
    found.save_masks(tmp_path / "m.safetensors")
    opened = ls.load_problem(
        tmp_path / "w.safetensors", model=Net(), data=all_data(problem), loss="cross_entropy"
    )
    assert opened.loss() == pytest.approx(found.after.loss, rel=1e-6)
    masks = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(masks[n], opened.model.state_dict()[n] != 0) for n in masks)
    with pytest.raises(InputError, match="do not fit this model"):
        found.apply(nn.Linear(2, 2))


@pytest.mark.parametrize("method", ["mfac", "magnitude"])
def test_a_loss_that_is_not_finite_ends_the_steps_and_is_a_failure(method: Any) -> None:
    def closure(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return -model.weight.abs().log().mean(), 1.0  # infinite once a weight is zero

    problem = ls.Problem.from_closure(nn.Linear(4, 1), closure, [torch.ones(1)])
    found = ls.prune(problem, 0.75, method=method, recompute=3, per="batch")
    (failure,) = found.failures
    assert "the loss is inf at a sparsity of 0.25, where pruning stopped" in failure
    assert ("raise the damping" in failure) == (method == "mfac")
    assert found.pruned == 1 and len(found.steps) == 2
    assert len(found.magnitude_steps) == (2 if method == "mfac" else 0)
    again = ls.Pruning.from_dict(json.loads(to_json(found.to_dict())))
    assert math.isnan(again.after.loss) and again.failures == found.failures


def test_half_precision_weights_keep_their_type() -> None:
    model = nn.Linear(6, 3).to(torch.bfloat16)
    problem = ls.Problem(model, "cross_entropy", (torch.randn(9, 6), torch.arange(9) % 3))
    found = ls.prune(problem, 0.5, recompute=2, gradients=9)
    assert found.state is not None and found.state["weight"].dtype == torch.bfloat16
    assert int((found.state["weight"] == 0).sum()) == 9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "no sparsity was given"),
        ({"sparsity": []}, "no sparsity was given"),
        ({"sparsity": 1.0}, "sparsity is 1.0: give the share of weights"),
        ({"sparsity": [0.8, 0.5]}, "above 0.8"),
        (
            {"sparsity": 0.5, "method": "random"},
            "method is 'random': choose mfac, magnitude or diag",
        ),
        ({"sparsity": 0.5, "schedule": "slow"}, "schedule is 'slow': choose one-shot or gradual"),
        ({"sparsity": 0.5, "scope": "all"}, "scope is 'all'"),
        ({"sparsity": 0.5, "recompute": 0}, "recompute is 0"),
        ({"sparsity": 0.5, "damping": 0.0}, "damping is 0.0"),
        ({"sparsity": 0.5, "gradients": 100}, "100 gradients were asked for"),
        ({"sparsity": 0.5, "pattern": (2, 4)}, "leave sparsity out"),
        ({"pattern": (2, 4), "structured": True}, "leave structured out"),
        ({"pattern": (4, 4)}, "the pattern is (4, 4): give how many of how many stay"),
        ({"pattern": "2:4"}, "the pattern is '2:4'"),
        ({"pattern": (2, 4), "scope": "layer"}, "leave scope out"),
        ({"pattern": (2, 7)}, "fits no layer"),
        ({"sparsity": "0.5"}, "sparsity is '0.5'"),
        ({"sparsity": 0.5, "recompute": 2.5}, "recompute is 2.5"),
        ({"sparsity": 0.5, "learning_rate": math.inf}, "learning_rate is inf"),
        ({"sparsity": 0.5, "prunable": "tail.*"}, "no trainable parameter matches 'tail"),
        ({"sparsity": 0.5, "epochs_per_step": 0}, "epochs_per_step is 0"),
        ({"sparsity": 0.5, "fine_tune": print}, "fine_tune goes with schedule='gradual'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        ls.prune(net_problem(), **options)
