"""The table of sharpness as a whole: invariances, an optimiser's state, what is left out, saved and refused."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from leaks import photograph, surroundings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import landscape as ls
from landscape.analyses.adam import adam_state
from landscape.analyses.sharpness.battery import FAMILIES
from landscape.loading.optimizer import read_optimizer
from landscape.results import to_json

DOUBLE = torch.float64


def relu_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


def data(count: int = 30) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=source, dtype=DOUBLE)
    return x, torch.randint(3, (count,), generator=source)


def problem_of(model: nn.Module) -> ls.Problem:
    return ls.Problem(model, "cross_entropy", data(), batch_size=16)


OPTIONS: dict[str, Any] = {"m": 10, "steps": 5, "draws": 5, "probes": 10}
# Rescaling consecutive ReLU layers changes no output. What it does to every measure:
INVARIANT = {
    "adaptive one step ℓ₂",
    "adaptive one step ℓ∞",
    "adaptive worst case ℓ₂",
    "adaptive worst case ℓ∞",
    "adaptive m-sharpness ℓ₂",
    "adaptive average",
    "logit-normalised adaptive worst case ℓ₂",
    "logit-normalised adaptive worst case ℓ∞",
    "logit-normalised adaptive average",
    "Fisher–Rao norm, data's targets",
    "Fisher–Rao norm, model's targets",
    "relative flatness",
}
NEARLY_INVARIANT = {"magnitude-aware PAC-Bayes"}  # but for its ε
CHANGED = {
    "gradient norm",
    "λ_max",
    "trace",
    "Frobenius norm",
    "one step ℓ₂",
    "one step ℓ∞",
    "worst case ℓ₂",
    "worst case ℓ∞",
    "m-sharpness ℓ₂",
    "average",
    "logit-normalised worst case ℓ₂",
    "logit-normalised worst case ℓ∞",
    "logit-normalised average",
    "PAC-Bayes flatness",
    "critical sharpness",
    "gradient-normalised smoothness γ",
}


def test_invariance_under_rescaling_of_consecutive_relu_layers() -> None:
    model = relu_net()
    model[4].weight.data *= 3  # somewhat accurate, so that there is accuracy to lose
    before = ls.sharpness(problem_of(model), **OPTIONS)
    x, _ = data()
    output = model(x)
    with torch.no_grad():
        model[0].weight *= 4
        model[0].bias *= 4
        model[2].weight /= 4
    torch.testing.assert_close(model(x), output)
    after = ls.sharpness(problem_of(model), **OPTIONS)
    assert {row.name for row in before.measures} == INVARIANT | NEARLY_INVARIANT | CHANGED
    for row in before.measures:
        change = abs(after[row.name].value / row.value - 1)
        if row.name in INVARIANT:
            assert change < 1e-6, (row.name, change)
        elif row.name in NEARLY_INVARIANT:
            assert change < 0.05, (row.name, change)
        else:
            assert change > 0.05, (row.name, change)
    for layer, other in zip(before.layers, after.layers, strict=True):
        assert other.value == pytest.approx(layer.value, rel=1e-6)


def test_adaptive_measures_of_matrices_alone_are_not_invariant() -> None:
    model = relu_net()
    before = ls.sharpness(problem_of(model), measures="average", scaled="matrices", draws=5)
    with torch.no_grad():
        model[0].weight *= 4
        model[0].bias *= 4
        model[2].weight /= 4
    after = ls.sharpness(problem_of(model), measures="average", scaled="matrices", draws=5)
    assert before["adaptive average"].scaling == "|w| of matrices"
    assert abs(after["adaptive average"].value / before["adaptive average"].value - 1) > 1e-3


# An optimiser's state


def trained(
    build: Any = torch.optim.Adam, split: bool = False, named: bool = False, **options: Any
) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model, (x, y) = relu_net(), data()
    parameters: Any = list(model.named_parameters() if named else model.parameters())
    if split:  # as demos do: matrices first
        parameters = [
            {"params": [p for p in parameters if p.ndim > 1], "eps": 1e-6},
            {"params": [p for p in parameters if p.ndim == 1], "betas": (0.8, 0.95)},
        ]
    optimizer = build(parameters, lr=0.02, **options)
    for _ in range(7):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"split": True}),
        (torch.optim.Adam, {"named": True}),
        (torch.optim.Adam, {"amsgrad": True, "betas": (0.9, 0.5)}),
        (torch.optim.AdamW, {"weight_decay": 0.0, "betas": (0.7, 0.99), "eps": 1e-4}),
    ],
)
def test_preconditioned_sharpness_equals_the_dense_matrix(build: Any, options: Any) -> None:
    model, optimizer = trained(build, **options)
    problem = problem_of(model)
    parts = []
    for parameter in model.parameters():
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        own, (b1, b2), t = optimizer.state[parameter], group["betas"], 7
        second = own["max_exp_avg_sq"] if "amsgrad" in options else own["exp_avg_sq"]
        P = (1 - b1**t) * ((second / (1 - b2**t)).sqrt() + group["eps"])
        parts.append(P.reshape(-1))
    half = torch.cat(parts).rsqrt()
    H = ls.Hessian(problem).dense()
    truth = float(torch.linalg.eigvalsh(half[:, None] * H * half)[-1])
    found = ls.sharpness(
        problem, measures="preconditioned", tolerance=1e-8, optimizer=optimizer.state_dict()
    )
    row = found["preconditioned sharpness"]
    assert row.value == pytest.approx(truth, rel=1e-6)
    assert row.cost.products > 0 and "after 7 steps" in row.note


def test_stability_threshold_of_adam_is_38_over_the_learning_rate() -> None:
    model, optimizer = trained()
    found = ls.sharpness(
        problem_of(model), measures="preconditioned", optimizer=optimizer.state_dict()
    )
    assert "unstable above 1900" in found.measures[0].note  # 38 / 0.02


def test_the_update_is_the_next_step_of_the_optimiser() -> None:
    for options in ({}, {"split": True}, {"amsgrad": True, "betas": (0.9, 0.5)}):
        model, optimizer = trained(**options)
        problem = problem_of(model)
        update = adam_state(problem, optimizer.state_dict()).update(problem.gradient())
        before, (x, y) = vector(model), data()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(before - vector(model), 0.02 * update, rtol=1e-9, atol=1e-12)


def test_critical_sharpness_takes_the_step_of_the_optimiser() -> None:
    model, optimizer = trained()
    problem = problem_of(model)
    state = optimizer.state_dict()
    row = ls.sharpness(problem, measures="critical", optimizer=state)["critical sharpness"]
    assert "next update of Adam" in row.note
    update = adam_state(problem, state).update(problem.gradient())
    x, y = data()
    center, begin = cross_entropy(model(x), y), vector(model)

    def rise(eta: float) -> float:
        nn.utils.vector_to_parameters(begin - eta * update, model.parameters())
        value = float((cross_entropy(model(x), y) - center).detach())
        nn.utils.vector_to_parameters(begin, model.parameters())
        return value

    low, high = 2 / (row.value + row.standard_error), 2 / (row.value - row.standard_error)
    assert rise(low * (1 - 1e-9)) <= 0 < rise(high * (1 + 1e-9))


def test_states_that_do_not_fit_are_refused_in_a_sentence() -> None:
    model, optimizer = trained()
    problem, state = problem_of(model), optimizer.state_dict()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict()
    other = torch.optim.Adam(nn.Linear(2, 2).double().parameters())
    for parameter in other.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    other.step()
    unfinished = copy.deepcopy(state)
    del unfinished["state"][2]
    for wrong, sentence in (
        ({"weights": 1}, "lacks param_groups and state"),
        (sgd, "no second moments"),
        (other.state_dict(), "the optimiser's state 0: name the state that belongs to this model"),
        (unfinished, r"has 1 trainable parameters of shape \(5, 6\)"),
    ):
        with pytest.raises(ls.InputError, match=sentence):
            ls.sharpness(problem, measures="preconditioned", optimizer=wrong)


def test_states_are_read_from_checkpoints_without_running_code(tmp_path: Path) -> None:
    _, optimizer = trained()
    state = optimizer.state_dict()
    for name, content in (("a", state), ("b", {"epoch": 3, "optimizer": state})):
        torch.save(content, tmp_path / name)
        assert read_optimizer(tmp_path / name)["param_groups"] == state["param_groups"]
    torch.save({"model": {}}, tmp_path / "c")
    with pytest.raises(ls.InputError, match="holds no state of an optimiser"):
        read_optimizer(tmp_path / "c")
    torch.save(relu_net(), tmp_path / "d")  # a pickled module
    with pytest.raises(ls.InputError, match="cannot read an optimiser's state"):
        read_optimizer(tmp_path / "d")
    with pytest.raises(ls.InputError, match="cannot read an optimiser's state"):
        read_optimizer(tmp_path / "missing")


# The result


def test_every_row_says_what_it_is_and_what_it_cost(tmp_path: Path) -> None:
    model, optimizer = trained()
    calls: list[tuple[str, int, int]] = []
    found = ls.sharpness(
        problem_of(model),
        optimizer=optimizer.state_dict(),
        progress=lambda *call: calls.append(call),
        **OPTIONS,
    )
    for row in found.measures:
        assert row.definition and row.family in FAMILIES
        assert row.cost.seconds >= 0 and row.cost.peak_bytes > 0
        assert (row.standard_error >= 0 and row.error_from) or (
            math.isnan(row.standard_error) and not row.error_from
        )
        spent = row.cost.products + row.gradients + row.losses
        assert spent > 0 or row.note == "from the products of the trace"
        perturbed = row.family in ("worst", "m", "average", "normalised", "pac-bayes")
        assert (row.rho is not None) == perturbed and (row.scaling != "") >= perturbed
    assert {row.m for row in found.measures} == {10, 30}
    assert set(found.left_out) == {"surrogate"}
    assert not found.failures
    assert "Andriushchenko 2023" in found.caution
    assert calls[-1][1:] == (len(FAMILIES), len(FAMILIES))
    assert found.cost.products == sum(row.cost.products for row in found.measures)
    found.save(tmp_path / "s.json")
    again = ls.Sharpness.load(tmp_path / "s.json")
    assert again.SCHEMA == "landscape/sharpness/1"
    assert json.loads(to_json(again.to_dict())) == json.loads(to_json(found.to_dict()))
    with pytest.raises(KeyError):
        found["nothing"]


def test_the_same_seed_gives_the_same_numbers_and_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).train()
    x, y = torch.randn(20, 1, 4, 4), torch.randint(3, (20,))
    model(x).sum().backward()
    before, around = photograph(model), surroundings()
    first, second, third = (
        ls.sharpness(ls.Problem(model, "cross_entropy", (x, y)), seed=seed, **OPTIONS)
        for seed in (3, 3, 4)
    )
    assert photograph(model) == before and surroundings() == around
    values = [[row.value for row in found.measures] for found in (first, second, third)]
    assert values[0] == values[1] != values[2]


def test_closures_have_the_measures_that_need_no_output() -> None:
    model = nn.Linear(3, 1).double()
    x = torch.randn(6, 3, dtype=DOUBLE)
    problem = ls.Problem.from_closure(
        model, lambda m, batch: (m(batch).square().mean(), float(len(batch))), [x[:4], x[4:]]
    )
    found = ls.sharpness(problem, **OPTIONS)
    families = {row.family for row in found.measures}
    assert {"gradient", "spectral", "worst", "average", "critical"} <= families
    assert {"m", "normalised", "fisher-rao", "pac-bayes", "surrogate"} <= set(found.left_out)


def test_values_that_are_not_finite_are_failures() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    problem = ls.Problem.from_closure(
        model, lambda m, batch: (m.weight.sum().exp(), 1.0), [torch.zeros(1)]
    )
    found = ls.sharpness(problem, measures="worst", rho=1e3, steps=2)
    assert any("worst case ℓ₂ is not finite: choose a smaller ρ" in text for text in found.failures)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"measures": "sharp"}, "'sharp' is no family of measures: choose of gradient, spectral"),
        ({"measures": []}, "nothing is no family"),
        ({"rho": 0.0}, "rho is 0.0: it must be positive"),
        ({"adaptive_rho": -1.0}, "adaptive_rho is -1.0: it must be positive"),
        ({"rho": math.inf}, "rho is inf"),
        ({"draws": 1}, "draws is 1: it must be at least 2"),
        ({"m": 0}, "m is 0: it must be at least 1"),
        ({"scaled": "some"}, "scaled is 'some': choose 'all' or 'matrices'"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(options: Any, sentence: str) -> None:
    with pytest.raises(ls.InputError, match=sentence):
        ls.sharpness(problem_of(relu_net()), **options)
