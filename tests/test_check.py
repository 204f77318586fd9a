"""`landscape check`: what it tells, what it forecasts, and when the second opinion contradicts."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from conftest import Run
from oracles import hessian
from torch import nn

import landscape as ls
from landscape.analyses.check import check
from landscape.analyses.forecast import forecast
from landscape.analyses.second_opinion import second_opinion
from landscape.estimators.lanczos import eigenpairs

pyhessian = pytest.importorskip("pyhessian", reason="the second opinion is PyHessian's")


def _net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2))
    return nn.Sequential(body, nn.Linear(6, 3))


def _problem(**options: Any) -> ls.Problem:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(70, 5, generator=source)
    y = torch.randint(0, 3, (70,), generator=source)
    return ls.Problem(_net(), "cross_entropy", (x, y), batch_size=32, **options)


def test_check_tells_what_is_there() -> None:
    problem = _problem(params=["0.0.*", "1.*"])
    result = check(problem, opinion=False)
    blocks = {block.name: (block.kind, block.parameters, block.left_out) for block in result.blocks}
    assert blocks == {
        "0.0": ("Linear", 36, 0),
        "0.1": ("BatchNorm1d", 0, 12),
        "1": ("Linear", 21, 0),
    }
    assert result.problem["tensors"] == {
        "input": {"shape": [5], "dtype": "float32"},
        "target": {"shape": [], "dtype": "int64"},
    }
    assert (result.problem["classes"], result.problem["samples"]) == (3, 70)
    assert ("running statistics", 1, ["0.1 (BatchNorm1d)"]) in result.special
    assert result.repeatable == 0 and result.symmetry < 1e-6
    assert result.opinion is None and not result.failures
    assert result.loss == pytest.approx(problem.loss())


def test_a_deep_model_gets_a_short_table() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(20)))
    result = check(ls.Problem(model, "mse", (torch.ones(3, 2), torch.ones(3, 2))), opinion=False)
    assert len(result.blocks) == 20
    assert sum(block.parameters for block in result.blocks) == 240


CASES_OF_OPINION = [
    "mlp_cross_entropy_on_ragged_batches",
    "ignored_tokens_with_one_batch_entirely_ignored",
    "class_weights_label_smoothing_and_ignored_tokens",
    "dict_batches_for_a_keyword_model",
    "loss_with_a_penalty_on_the_parameters",
    "unused_parameter",
    "frozen_parameters",
    "fused_attention",
    "physics_informed_closure",
]


@pytest.mark.parametrize("name", CASES_OF_OPINION)
def test_pyhessian_agrees_and_nothing_is_left_behind(name: str) -> None:
    case = CASES[name]()
    before = copy.deepcopy(case.model.state_dict())
    mode = [module.training for module in case.model.modules()]
    problem = case.problem()
    pairs = eigenpairs(ls.Hessian(problem), 2, which="magnitude", tolerance=1e-6)
    opinion = second_opinion(problem, pairs, iterations=400)
    assert opinion.unavailable is None
    truth = torch.linalg.eigvalsh(hessian(case))
    largest = float(truth.abs().max())
    for value, residual in zip(opinion.values, opinion.residuals, strict=True):
        # A value is within its residual of a true one.
        assert float((truth - value).abs().min()) <= residual + 1e-9 * largest
    assert abs(opinion.values[0]) == pytest.approx(largest, rel=1e-2)
    assert max(opinion.differences) < 1e-9
    assert not opinion.disagreements(pairs)
    assert all(torch.equal(before[key], value) for key, value in case.model.state_dict().items())
    assert [module.training for module in case.model.modules()] == mode
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_weights_of_batches_are_corrected_and_said() -> None:
    problem = CASES["ignored_tokens_with_one_batch_entirely_ignored"]().problem()
    pairs = eigenpairs(ls.Hessian(problem), 1, which="magnitude")
    low, high = second_opinion(problem, pairs).batch_weights
    assert low == 0 and high > 1
    assert second_opinion(_problem(), pairs_of(_problem())).batch_weights == (1.0, 1.0)


def pairs_of(problem: ls.Problem) -> Any:
    return eigenpairs(ls.Hessian(problem), 1, which="magnitude")


def test_the_random_state_is_left_alone() -> None:
    problem = _problem()
    before = torch.get_rng_state()
    check(problem, iterations=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_a_wrong_product_is_a_disagreement(
    run: Run, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = pyhessian.hessian.dataloader_hv_product

    def wrong(self: Any, vector: Any) -> Any:
        value, image = honest(self, vector)
        return 1.01 * value, [1.01 * part for part in image]

    monkeypatch.setattr(pyhessian.hessian, "dataloader_hv_product", wrong)
    done = run("check", tiny_archive, "--json", "c.json")
    assert done.returncode == 3
    assert "PyHessian's product with eigenvector 1 differs from ours by 0.01" in done.stderr
    assert "agree" not in done.stdout.replace("two products agree", "")
    assert json.loads(Path("c.json").read_text())["failures"]


def test_an_eigenvalue_of_theirs_that_is_missing_from_ours_is_a_disagreement() -> None:
    problem = _problem()
    H = ls.Hessian(problem)
    pairs = eigenpairs(H, 1, which="smallest", tolerance=1e-6)  # not the largest magnitude
    opinion = second_opinion(problem, pairs, iterations=200)
    assert "none of ours" in opinion.disagreements(pairs)[0]


def test_without_pyhessian_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyhessian", None)
    result = check(_problem())
    assert result.opinion is not None
    assert result.opinion.unavailable == "PyHessian is not installed"
    assert not result.failures


def test_the_forecast_counts_the_products_of_the_real_commands() -> None:
    problem = _problem()
    spent = {"spectrum": ls.spectrum(problem).cost, "check": check(problem, iterations=3).cost}
    for row in forecast(problem):
        few, many = row.products
        assert (
            few * 0.5 < spent[row.command].products <= many
        )  # a search in a small space ends early
        assert row.fits and row.seconds[0] > 0 and row.peak_bytes > 0


def test_check_on_the_command_line(run: Run, tiny_archive: Path) -> None:
    done = run("check", tiny_archive)
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        *("problem archive", "1,441 parameters", "diabetes:train", "64 samples", "input (10,)"),
        *("repeatable", "double backward", "landscape spectrum", "both libraries agree", "2.3 %"),
    ):
        assert word in done.stdout, word
    assert "\x1b" not in done.stdout  # no colours where there is no terminal
    pure = run("check", tiny_archive, "--json", "-", "--no-second-opinion")
    assert json.loads(pure.stdout)["schema"] == "landscape/check/1"
    assert "no second opinion was asked for" in pure.stderr


def test_a_slow_problem_is_compared_on_its_first_samples() -> None:
    result = check(_problem(), budget=1e-9, iterations=3)
    assert result.compared_samples == 16 and result.problem["samples"] == 70
    assert not result.failures
    source = torch.Generator().manual_seed(1)
    x = torch.randn(70, 5, generator=source)
    y = torch.randint(0, 3, (70,), generator=source)
    few = ls.Hessian(ls.Problem(_net(), "cross_entropy", (x[:16], y[:16])))
    truth = torch.linalg.eigvalsh(few.dense())
    assert max(map(abs, result.eigenvalues)) == pytest.approx(float(truth.abs().max()), rel=1e-4)


def test_a_part_of_a_problem_is_whole_batches_or_the_beginning_of_the_first() -> None:
    problem = _problem()  # batches of 32, 32 and 6
    assert [problem.part(rows).samples for rows in (7, 32, 50, 64, 1000)] == [7, 32, 32, 64, 70]
    assert problem.samples == 70 and problem.part(7).loss() != problem.loss()


def test_features_of_many_sizes_are_measured_in_float64() -> None:
    """Unstandardised features: float32 products are wrong by more than their own residuals show."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(120, 13, generator=source) * 10.0 ** torch.arange(-2, 4.5, 0.5)
    y = (x[:, 0] > 0).long() + (x[:, 5] > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3))
    problem = ls.Problem(model, "cross_entropy", (x, y))
    result = check(problem, opinion=False)
    exact = ls.Hessian(ls.Problem(model, "cross_entropy", (x, y), dtype=torch.float64))
    truth = torch.linalg.eigvalsh(exact.dense())
    for value, residual in zip(result.eigenvalues, result.residuals, strict=True):
        assert float((truth - value).abs().min()) <= residual + 1e-12 * float(truth.abs().max())
