"""The state of Adam is laid out along the weights, and sharpness is measured as Adam sees it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sharpness_cases import data, problem_of, relu_net, trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import landscape as ls
from landscape.analyses.adam import adam_state
from landscape.loading.optimizer import read_optimizer


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


def test_no_threshold_is_named_where_learning_rates_differ() -> None:
    model, optimizer = trained(split=True)
    optimizer.param_groups[0]["lr"] = 0.1
    found = ls.sharpness(
        problem_of(model), measures="preconditioned", optimizer=optimizer.state_dict()
    )
    assert found.measures[0].note == "Adam after 7 steps"


def test_preconditioned_sharpness_changes_when_relu_layers_are_rescaled_with_their_moments() -> (
    None
):
    """P goes as 1/α where H goes as 1/α²."""
    model, optimizer = trained()

    def measured(state: Any) -> float:
        found = ls.sharpness(problem_of(model), measures="preconditioned", optimizer=state)
        return found.measures[0].value

    before, state = measured(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        for i, factor in ((0, 4.0), (1, 4.0), (2, 0.25)):
            list(model.parameters())[i].mul_(factor)
            state["state"][i]["exp_avg"] /= factor
            state["state"][i]["exp_avg_sq"] /= factor**2
    assert abs(measured(state) / before - 1) > 0.05


def test_the_update_is_the_next_step_of_the_optimiser() -> None:
    amsgrad: dict[str, Any] = {"amsgrad": True, "betas": (0.9, 0.5)}
    for options in ({}, {"split": True}, amsgrad, amsgrad | {"split": True}):
        model, optimizer = trained(**options)
        problem = problem_of(model)
        update = adam_state(problem, optimizer.state_dict()).update(problem.gradient())
        before, (x, y) = vector(model), data(30)
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
    x, y = data(30)
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
    wider = torch.optim.Adam(nn.Sequential(nn.Linear(4, 7)).double().named_parameters())
    for parameter in wider.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    wider.step()
    unfinished = copy.deepcopy(state)
    del unfinished["state"][2]
    for wrong, sentence in (
        ({"weights": 1}, "lacks param_groups and state"),
        (sgd, "no second moments"),
        (other.state_dict(), "the optimiser's state 0: name the state that belongs to this model"),
        (wider.state_dict(), r"shape \(6, 4\) in the model and \(7, 4\) in the optimiser's state"),
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
