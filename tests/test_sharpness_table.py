"""The table of sharpness as a whole: invariances, what is left out, saved and refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from leaks import photograph, surroundings
from sharpness_cases import DOUBLE, data, problem_of, relu_net, trained
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.sharpness.battery import FAMILIES
from landscape.results import to_json

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
    "surrogate gradient norm of the confidence",
}


def test_invariance_under_rescaling_of_consecutive_relu_layers() -> None:
    model = relu_net()
    model[4].weight.data *= 3  # somewhat accurate, so that there is accuracy to lose
    before = ls.sharpness(problem_of(model), **OPTIONS)
    x, _ = data(30)
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
        assert row.standard_error >= 0 and row.error_from and row.scaling
        spent = row.cost.products + row.gradients + row.losses
        assert spent > 0 or row.note == "from the products of the trace"
        finite = ("worst", "m", "average", "normalised", "pac-bayes", "surrogate")
        assert (row.rho is not None) == (row.family in finite)
    assert {row.m for row in found.measures} == {10, 30}
    assert not found.left_out and not found.failures
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
    few = OPTIONS | {"steps": 2, "draws": 2, "probes": 2}
    first, second, third = (
        ls.sharpness(ls.Problem(model, "cross_entropy", (x, y)), seed=seed, **few)
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
    assert {"m", "normalised", "fisher-rao", "PAC-Bayes flatness", "surrogate"} <= set(
        found.left_out
    )


class Once(torch.autograd.Function):
    """A rectifier that is differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class OnceDifferentiable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = relu_net()[:3]

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](Once.apply(self.net[0](x)))


def test_without_second_derivatives_the_other_measures_are_those_of_the_same_model() -> None:
    model = OnceDifferentiable()
    families = ["gradient", "spectral", "worst", "average", "critical", "surrogate"]
    found = ls.sharpness(ls.Problem(model, "cross_entropy", data(30)), measures=families)
    truth = ls.sharpness(ls.Problem(model.net, "cross_entropy", data(30)), measures=families)
    assert set(found.left_out) == {"spectral"} and not found.failures
    assert "without a second derivative" in found.left_out["spectral"]
    for row in found.measures:
        assert row.value == pytest.approx(truth[row.name].value, rel=1e-9)
    assert math.isnan(found["gradient norm"].standard_error)


def test_what_one_family_cannot_be_trusted_about_leaves_the_others() -> None:
    """All logits are the same: normalised, they have no gradient."""
    model = relu_net()
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    found = ls.sharpness(problem_of(model), measures=["gradient", "normalised"])
    assert [row.name for row in found.measures] == ["gradient norm"]
    assert "normalised: the gradient is not finite" in found.failures[0]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    model, optimizer = trained()
    problem, path = problem_of(model), tmp_path / "state"
    options = OPTIONS | {"optimizer": optimizer.state_dict()}
    options |= {"measures": ["gradient", "m", "pac-bayes", "relative-flatness", "critical"]}
    whole = ls.sharpness(problem, **options)

    def kill(family: str, done: int, expected: int) -> None:
        if family == "critical":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ls.sharpness(problem, resume=path, progress=kill, **options)
    again = ls.sharpness(problem, resume=path, **options)
    assert [(row.name, row.value) for row in again.measures] == [
        (row.name, row.value) for row in whole.measures
    ]
    assert again.layers == whole.layers and again.left_out == whole.left_out
    # What the first run spent is counted.
    assert again.cost.products == whole.cost.products
    assert again.cost.seconds > sum(row.cost.seconds for row in again.measures[:-1])
    other = optimizer.state_dict()
    other["param_groups"][0]["eps"] = 1.0
    for wrong in ({"rho": 0.1}, {"optimizer": other}):
        with pytest.raises(ls.InputError, match="belongs to other work"):
            ls.sharpness(problem, resume=path, **options | wrong)


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
