"""Influence: against training anew without a sample, closed forms, and dense matrices."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr
from spectra import small_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import landscape as ls
from landscape.demos.data import load_data
from landscape.operators.sample_losses import derivatives_along, losses_and_gradients
from landscape.results import to_json


def net_problem(batch_size: int = 60) -> ls.Problem:
    model, inputs, target = small_net()
    return ls.Problem(
        model, "cross_entropy", (inputs, target), batch_size=batch_size, dtype=torch.float64
    )


def effects(found: ls.Influence) -> np.ndarray:
    return np.stack([query.effects for query in found.queries])


def sample_gradients(problem: ls.Problem) -> Tensor:
    """Gradients of the summed loss terms of every sample (n, P), by plain autograd on the model."""
    x, y = (torch.cat(parts) for parts in zip(*problem.batches(), strict=True))
    model = problem.model.double()
    rows = []
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


# --- leaving out ---------------------------------------------------------------------------------


def logistic(x: np.ndarray, sign: np.ndarray, penalty: float, count: int, theta: np.ndarray):  # type: ignore[no-untyped-def]
    """The optimum of Σ log(1 + exp(−s xᵀθ)) / count + ½ penalty ‖θ‖² by Newton's method, its Hessian."""
    for _ in range(60):
        wrong = 1 / (1 + np.exp(sign * (x @ theta)))
        gradient = -(x.T @ (sign * wrong)) / count + penalty * theta
        hessian = (x.T * (wrong * (1 - wrong))) @ x / count + penalty * np.eye(len(theta))
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step
        if np.linalg.norm(step) <= 1e-13 * np.linalg.norm(theta):
            return theta, hessian
    raise AssertionError("not converged")


def test_effects_are_what_training_without_a_sample_does() -> None:
    """Logistic regression on breast-cancer, its L2 penalty as the damping: Pearson above 0.99."""
    penalty, queries = 0.1, 20
    x, y = load_data("breast-cancer:train")
    tx, ty = (part[:queries] for part in load_data("breast-cancer:test"))
    X, TX = (np.c_[part.double().numpy(), np.ones(len(part))] for part in (x, tx))
    sign, tsign = (2.0 * part.numpy() - 1 for part in (y, ty))
    count = len(X)
    whole, hessian = logistic(X, sign, penalty, count, np.zeros(X.shape[1]))
    base = np.logaddexp(0, -tsign * (TX @ whole))
    actual = np.zeros((queries, count))
    for i in range(count):
        kept = np.arange(count) != i
        without, _ = logistic(X[kept], sign[kept], penalty, count, whole)
        actual[:, i] = np.logaddexp(0, -tsign * (TX @ without)) - base

    model = nn.Linear(30, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(whole[None, :-1]))
        model.bias.copy_(torch.from_numpy(whole[-1:]))
    problem = ls.Problem(model, "bce_with_logits", (x.double(), y[:, None].double()))
    found = ls.influence(
        problem,
        range(queries),
        data=(tx.double(), ty[:, None].double()),
        damping=penalty,
        tolerance=1e-10,
    )
    assert not found.failures and not found.queries_from_training
    predicted = effects(found)
    wrong, twrong = (1 / (1 + np.exp(s * (z @ whole))) for s, z in ((sign, X), (tsign, TX)))
    gradients, asked = -(X.T * (sign * wrong)).T, -(TX.T * (tsign * twrong)).T
    closed = asked @ np.linalg.solve(hessian, gradients.T) / count
    assert np.abs(predicted - closed).max() <= 1e-8 * np.abs(closed).max()
    assert np.allclose([query.loss for query in found.queries], base)
    assert pearsonr(predicted.flatten(), actual.flatten())[0] >= 0.99
    # First order falls short of what a sample with much leverage does, never by more than this.
    assert 1.0 < (predicted * actual).sum() / (predicted**2).sum() < 1.1
    for query, row in zip(found.queries, actual, strict=True):
        assert row[query.most_helpful(3)].min() > 0 > row[query.most_harmful(3)].max()


def test_effects_are_derivatives_by_the_weight_of_a_sample() -> None:
    """Ridge regression with two outputs, so that a sample has two loss terms: closed form, re-weighted."""
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, k, generator=source).double() for k in (3, 2))
    q, t = (torch.randn(2, k, generator=source).double() for k in (3, 2))
    penalty, terms = 0.2, 18

    def trained(weights: Tensor) -> Tensor:
        """Minimises Σ w_i ‖x_iθ − y_i‖² / 18 + ½ penalty ‖θ‖²."""
        left = (x.T * weights) @ x * 2 / terms + penalty * torch.eye(3).double()
        return torch.linalg.solve(left, (x.T * weights) @ y * 2 / terms)

    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(trained(torch.ones(9).double()).T)
    problem = ls.Problem(model, "mse", (x, y), batch_size=4)
    found = ls.influence(problem, [0, 1], data=(q, t), damping=penalty, tolerance=1e-12)
    step, expected = 1e-5, torch.zeros(2, 9).double()
    for i in range(9):
        change = step * F.one_hot(torch.tensor(i), 9).double()
        less, more = trained(1 - change), trained(1 + change)
        losses = [(q @ theta - t).square().mean(1) for theta in (less, more)]
        expected[:, i] = (losses[0] - losses[1]) / (2 * step)  # towards a weight of zero
    assert np.allclose(effects(found), expected.numpy(), rtol=1e-6, atol=1e-9)


# --- which matrix, which solver ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gauss-newton", "hessian", "fisher", "empirical-fisher"])
def test_every_matrix_gives_the_effects_of_its_dense_inverse(name: str) -> None:
    problem, damping = net_problem(), 0.5
    kinds = {
        "gauss-newton": ls.GaussNewton,
        "hessian": ls.Hessian,
        "fisher": ls.Fisher,
        "empirical-fisher": ls.EmpiricalFisher,
    }
    A = kinds[name](problem)
    rows = sample_gradients(problem)
    damped = A.dense() + damping * torch.eye(problem.size).double()
    expected = rows[[3, 50, 3]] @ torch.linalg.solve(damped, rows.T) / len(rows)
    found = ls.influence(problem, [3, 50, 3], operator=name, damping=damping, tolerance=1e-10)
    assert found.operator == type(A).__name__ and not found.failures
    assert np.allclose(effects(found), expected.numpy(), atol=1e-8 * float(expected.abs().max()))
    given = ls.influence(problem, [3, 50, 3], operator=A, damping=damping, tolerance=1e-10)
    assert np.array_equal(effects(given), effects(found))


def test_seed_is_also_of_the_targets_drawn_for_a_fisher_matrix() -> None:
    problem, options = net_problem(), {"operator": "fisher", "samples": 1, "damping": 0.5}
    first, again, other = (
        effects(ls.influence(problem, [3], seed=seed, **options)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.allclose(first, other, rtol=1e-3)
    drawn = ls.Fisher(problem, samples=1, seed=2)
    assert np.array_equal(other, effects(ls.influence(problem, [3], operator=drawn, damping=0.5)))


@pytest.mark.parametrize("method", ["cg", "minres", "nystrom", "neumann", "mfac"])
def test_every_solver_gives_the_same_effects(method: str) -> None:
    problem = net_problem()
    options = {"damping": 0.5, "tolerance": 1e-8}
    expected = effects(ls.influence(problem, [3, 50], **options))
    found = ls.influence(problem, [3, 50], method=method, **options)
    assert not found.failures and found.method == method
    assert {query.status for query in found.queries} == {"converged"}
    assert np.abs(effects(found) - expected).max() <= 1e-6 * np.abs(expected).max()


def test_lissa_comes_near_and_says_how_near() -> None:
    problem = net_problem()
    expected = effects(ls.influence(problem, [3], damping=2.0))
    options = {"damping": 2.0, "method": "lissa", "max_iterations": 150}
    found = ls.influence(problem, [3], tolerance=0.2, **options)
    assert not found.failures and pearsonr(effects(found)[0], expected[0])[0] > 0.98
    strict = ls.influence(problem, [3], tolerance=1e-4, **options)
    assert "above the tolerance 0.0001 (iteration limit)" in strict.failures[0]


def test_inverse_fisher_needs_no_solver() -> None:
    problem, damping = net_problem(), 0.05
    rows = sample_gradients(problem)
    size = problem.size
    F_ = damping * torch.eye(size).double() + rows.T @ rows / len(rows)
    expected = rows[[7]] @ torch.linalg.solve(F_, rows.T) / len(rows)
    inverse = ls.InverseFisher(problem, len(rows), damping)
    for asked in (
        {"operator": inverse},
        {"operator": "inverse-fisher", "rank": len(rows), "damping": damping},
    ):
        found = ls.influence(problem, [7], **asked)  # type: ignore[arg-type]
        assert np.allclose(effects(found), expected.numpy(), atol=1e-9)
        assert found.method == "woodbury" and found.damping == damping
        assert found.queries[0].residual == 0 and found.queries[0].status == "exact"


def test_batches_do_not_matter() -> None:
    """Also where queries and samples lie in several, the last of them smaller."""
    problem, options = net_problem(10_000), {"damping": 0.5, "tolerance": 1e-10}
    last = problem.samples - 1
    expected = ls.influence(problem, [0, last], **options)
    found = ls.influence(net_problem(37), [0, last], **options)
    assert np.allclose(effects(found), effects(expected), rtol=1e-6, atol=1e-10)
    x, y = next(iter(problem.batches()))
    others = ls.influence(problem, [0, 1], data=[(x[:1], y[:1]), (x[-1:], y[-1:])], **options)
    assert np.allclose(effects(others), effects(expected), rtol=1e-6, atol=1e-10)
    assert expected.targets == y.tolist() and expected.queries[1].target == int(y[-1])
    assert others.queries[1].target == int(y[-1])
    assert others.provenance["query_data_fingerprint"] != problem.data_fingerprint


# --- derivatives of samples ----------------------------------------------------------------------


def test_derivatives_along_vectors_are_those_of_every_sample() -> None:
    problem = net_problem(37)
    block = torch.randn(problem.size, 3, generator=torch.Generator().manual_seed(1)).double()
    calls: list[tuple[int, int]] = []
    found = derivatives_along(problem, block, progress=lambda *done: calls.append(done))
    assert torch.allclose(found, sample_gradients(problem) @ block, atol=1e-12)
    assert calls == [(i + 1, problem.batch_count) for i in range(problem.batch_count)]


def test_samples_of_several_terms_and_none() -> None:
    """Tokens, of which some are ignored: a sample's own loss is the mean over its own terms."""
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
    words = torch.randint(7, (5, 6), generator=source)
    target = torch.randint(7, (5, 6), generator=source)
    target[1, 2:], target[3] = -100, -100
    problem = ls.Problem(model, "token_cross_entropy", (words, target), batch_size=2)
    losses, gradients = losses_and_gradients(problem, [1, 0])
    for column, row in enumerate([1, 0]):
        loss = F.cross_entropy(model(words[row]), target[row], ignore_index=-100)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        assert abs(losses[column] - float(loss.detach())) < 1e-12
        flat = torch.cat([part.flatten() for part in parts])
        assert torch.allclose(gradients[:, column], flat, atol=1e-12)
    found = derivatives_along(problem, gradients)
    # Of sample 1 two terms count; of sample 3 none; together they are N times the gradient.
    assert torch.allclose(found[1], 2 * gradients[:, 0] @ gradients)
    assert not found[3].any()
    assert torch.allclose(found.sum(0), problem.terms * problem.gradient() @ gradients)
    with pytest.raises(ls.InputError, match="sample 3 has no loss: its target is ignored"):
        losses_and_gradients(problem, [3])


def test_samples_are_evaluated_within_their_batch() -> None:
    """A model whose samples share a matrix, or each other's mean: no sample can be cut out."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1).double()

        def forward(self, x: Tensor, links: Tensor) -> Tensor:
            return self.linear(links @ (x - x.mean(0)))

    source = torch.Generator().manual_seed(0)
    x, links, y = (torch.randn(8, k, generator=source).double() for k in (3, 8, 1))
    model = Graph()
    problem = ls.Problem(model, "mse", [{"x": x, "links": links, "y": y}])
    losses, gradients = losses_and_gradients(problem, [5, 2])
    for column, row in enumerate([5, 2]):
        loss = (model(x, links) - y).square()[row, 0]
        parts = torch.autograd.grad(loss, list(model.parameters()))
        assert losses[column] == pytest.approx(float(loss.detach()))
        assert torch.allclose(gradients[:, column], torch.cat([part.flatten() for part in parts]))


def test_cost_counts_the_gradients_of_an_inverse_fisher_matrix(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from landscape.analyses import influence as module

    class Slow(ls.InverseFisher):
        def __init__(self, *given, **named) -> None:  # type: ignore[no-untyped-def]
            time.sleep(0.2)
            assert named["memory"] == 10**6
            super().__init__(*given, **named)

    monkeypatch.setattr(module, "InverseFisher", Slow)
    found = ls.influence(
        net_problem(), [3], operator="inverse-fisher", rank=20, damping=0.1, memory=10**6
    )
    assert found.cost.seconds > 0.2


# --- what it says --------------------------------------------------------------------------------


def test_negative_curvature_and_unsolved_systems_are_said() -> None:
    problem = net_problem()
    found = ls.influence(problem, [0, 4], operator="hessian", damping=0.0, max_iterations=40)
    assert any("negative curvature (met for queries 0, 4)" in words for words in found.failures)
    assert any("query 0: the residual is" in words for words in found.failures)
    assert all(query.negative_curvature for query in found.queries)
    stopped = ls.influence(problem, [4], operator="hessian", damping=0.0, method="cg")
    assert len(stopped.failures) == 1 and "met for query 4" in stopped.failures[0]
    model, inputs, target = small_net()
    single = ls.Problem(model, "cross_entropy", (inputs, target), dtype=torch.float32)
    rounded = ls.influence(single, [4], damping=1e-3, tolerance=1e-9)
    assert "(stagnation): compute in --dtype float64 (dtype=), or" in rounded.failures[0]


def test_result_is_saved_whole(tmp_path: Path) -> None:
    phases: list[tuple[str, int, int]] = []
    found = ls.influence(
        net_problem(),
        [3, 5],
        damping=0.5,
        method="nystrom",
        rank=20,
        progress=lambda *done: phases.append(done),
    )
    assert {phase for phase, _, _ in phases} == {"inverse products", "training samples"}
    assert all(done <= expected for _, done, expected in phases)
    found.save(tmp_path / "influence.json")
    again = ls.Influence.load(tmp_path / "influence.json")
    assert to_json(again.to_dict()) == to_json(found.to_dict())
    query = again.queries[1]
    best, worst = query.most_helpful(2), query.most_harmful(1)
    order = np.argsort(query.effects)
    assert best == order[::-1][:2].tolist() and worst == order[:1].tolist()
    problem = net_problem()
    assert found.loss == problem.loss()
    assert found.gradient_norm == float(problem.gradient().norm())
    assert found.provenance["query_data_fingerprint"] == problem.data_fingerprint
    assert found.provenance["arguments"]["rank"] == 20
    assert found.cost.products >= 2 and found.cost.gradient_equivalents is not None
    assert found.provenance["problem"]["samples"] == found.samples == len(query.effects)


def test_samples_without_effect_neither_help_nor_harm() -> None:
    """Perfectly fitted, so that no sample has a gradient: nothing to name, nothing to draw."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.ones(3, 1)
    found = ls.influence(ls.Problem(model, "mse", (x, x)), [0])
    query = found.queries[0]
    assert query.most_helpful() == query.most_harmful() == [] and query.loss == 0
    (panel,) = found.plot().axes
    assert [text.get_text() for text in panel.texts] == ["no sample has an effect"]


def test_nothing_of_the_user_is_changed() -> None:
    model, inputs, target = small_net()
    problem = ls.Problem(model, "cross_entropy", (inputs, target), batch_size=60)
    weights = [p.detach().clone() for p in model.parameters()]
    model.train()
    before = torch.get_rng_state()
    with torch.no_grad():
        first = ls.influence(problem, [1], damping=0.5)
    second = ls.influence(problem, [1], damping=0.5)
    assert np.array_equal(effects(first), effects(second))
    assert torch.equal(before, torch.get_rng_state()) and model.training
    for p, weight in zip(model.parameters(), weights, strict=True):
        assert p.grad is None and torch.equal(p, weight)


def test_figure_shows_the_strongest_samples_of_every_query(tmp_path: Path) -> None:
    found = ls.influence(net_problem(), [3, 5, 8, 9], damping=0.5)
    for ending in ("svg", "png"):
        figure = found.plot(tmp_path / f"i.{ending}", top=3, title="a title")
        assert (tmp_path / f"i.{ending}").stat().st_size > 1000
    panels = [axes for axes in figure.axes if axes.patches]
    assert len(panels) == 4
    for axes, query in zip(panels, found.queries, strict=True):
        shown = query.most_helpful(3) + query.most_harmful(3)[::-1]
        widths = [patch.get_width() for patch in axes.patches]
        assert widths == query.effects[shown].tolist()
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert found.targets is not None
        assert labels == [f"{i} (class {found.targets[i]})" for i in shown]
    with pytest.raises(ls.InputError, match="its ending must be one of .png, .svg, .pdf"):
        found.plot(tmp_path / "i.html")
    single = replace(found, queries=found.queries[:1]).plot()
    single.draw_without_rendering()
    for drawn in (figure, single):
        for text in (drawn._supxlabel, *(axes.title for axes in drawn.axes)):  # type: ignore[attr-defined]
            box = text.get_window_extent()
            assert 0 <= box.x0 <= box.x1 <= drawn.bbox.x1, text
    with pytest.raises(ls.InputError, match=r"--top \(top=\) is 0: a figure shows 1 to 50 samples"):
        found.plot(top=0)
    with pytest.raises(ls.InputError, match="a figure holds 12 queries, and there are 13"):
        replace(found, queries=found.queries[:1] * 13).plot()


@pytest.mark.parametrize(
    ("queries", "options", "sentence"),
    [
        ([1000], {}, r"sample 1000 was asked for, and the data hold \d+: count from 0 to"),
        ([-1], {}, "sample -1 was asked for"),
        ([], {}, "no sample was asked for"),
        (3, {}, "queries is 3: give the positions of samples, whole numbers"),
        ([1.5], {}, r"queries is \[1.5\]: give the positions of samples"),
        ([0], {"operator": "kfac"}, "unknown operator 'kfac'.* inverse-fisher"),
        (
            [0],
            {"operator": "inverse-fisher", "samples": 3},
            "samples is about products with a matrix, and 'inverse-fisher' needs none",
        ),
        (
            [0],
            {"operator": ls.InverseFisher.from_gradients(torch.eye(3), 1.0), "rank": 7},
            r"rank=7 cannot be chosen for InverseFisher\(.*it has its gradients already",
        ),
        ([0], {"damping": -1.0}, "damping is -1.0: it must be 0 or positive"),
        (
            [0],
            {"operator": "inverse-fisher", "method": "cg"},
            "method='cg' solves with a matrix, and 'inverse-fisher' is an inverse already",
        ),
        (
            [0],
            {"operator": ls.as_operator(torch.eye(3))},
            r"does not belong to this problem of \d+ parameters",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(queries, options, sentence) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ls.InputError, match=sentence):
        ls.influence(net_problem(), queries, **options)


def test_positions_may_come_in_any_kind_of_array() -> None:
    problem = net_problem()
    for asked in (range(3, 5), np.array([3, 4]), torch.tensor([3, 4])):
        found = ls.influence(problem, asked, damping=5.0)  # type: ignore[arg-type]
        assert [query.position for query in found.queries] == [3, 4]


def test_data_in_another_order_on_every_pass_are_refused() -> None:
    """A position among the training samples, or the queries, would name another sample each time."""
    model, inputs, target = small_net()
    samples = TensorDataset(inputs, target)
    shuffled = DataLoader(samples, batch_size=60, shuffle=True)
    ordered = ls.Problem(model, "cross_entropy", DataLoader(samples, batch_size=60))
    assert len(ls.influence(ordered, [1], damping=5.0).queries[0].effects) == len(target)
    for problem, data in (
        (ls.Problem(model, "cross_entropy", shuffled), None),
        (ordered, shuffled),
        (ls.Problem(model, "cross_entropy", shuffled), (inputs, target)),
    ):
        with pytest.raises(ls.InputError, match="another order on every pass.*shuffle=False"):
            ls.influence(problem, [1], data=data, damping=5.0)


def test_effects_that_overflow_are_refused() -> None:
    """The query's gradient is small, and that of a training sample times the solution too large."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    x, y = torch.tensor([[1.0], [1e10]]), torch.ones(2, 1)
    inverse = ls.InverseFisher.from_gradients(torch.full((1, 1), 1e-20), 1e-30)
    with pytest.raises(ls.UntrustedResult, match="an effect is not finite.*dtype float64"):
        ls.influence(ls.Problem(model, "mse", (x, y)), [0], operator=inverse)


def test_problems_without_samples_of_their_own_are_refused() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))

    def closure(m, batch):  # type: ignore[no-untyped-def]
        return F.cross_entropy(m(batch[0]), batch[1]), len(batch[1])

    with pytest.raises(ls.InputError, match="made from a closure"):
        ls.influence(ls.Problem.from_closure(model, closure, [(x, y)]), [0])
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    problem = ls.Problem(normed, "cross_entropy", (x, y), norm_stats="batch")
    with pytest.raises(ls.InputError, match="no sample can be left out by itself"):
        ls.influence(problem, [0])
