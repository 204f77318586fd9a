"""Worst cases in a ball, of all the data and of batches, equal their definitions: closed forms, exhaustive search."""

import itertools
import math

import pytest
import torch
from sharpness_cases import (
    DOUBLE,
    classifier,
    critical_point,
    data,
    loss_of,
    quadratic,
    scaling,
    tanh_net,
    weights,
)
from torch import nn

import landscape as ls
from landscape.analyses.sample_groups import random_batches
from landscape.analyses.sharpness.balls import find_worst, steepest
from landscape.analyses.sharpness.subject import Subject

# Worst cases


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_tends_to_the_dual_norm_of_the_gradient(adaptive: bool) -> None:
    problem = classifier()
    rho = 1e-6
    found = ls.sharpness(problem, measures="worst", rho=rho, adaptive_rho=rho, steps=3)
    scaled = problem.gradient() * scaling(problem, adaptive)
    kind = "adaptive " if adaptive else ""
    for how in ("one step", "worst case"):
        l2, linf = found[f"{kind}{how} ℓ₂"], found[f"{kind}{how} ℓ∞"]
        # The next order is ρλ/‖g‖ ≈ 1e-5; the losses, of order 1, are rounded to 1e-16.
        assert l2.value / l2.rho == pytest.approx(float(scaled.norm()), rel=1e-4)  # type: ignore[operator]
        assert linf.value / linf.rho == pytest.approx(float(scaled.abs().sum()), rel=1e-4)  # type: ignore[operator]
        assert linf.rho == pytest.approx(rho / math.sqrt(problem.size))


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_tends_to_the_largest_eigenvalue_at_a_critical_point(adaptive: bool) -> None:
    problem = critical_point()
    assert problem.gradient().norm() < 1e-14
    c = scaling(problem, adaptive)
    H = ls.Hessian(problem).dense()
    truth = float(torch.linalg.eigvalsh(c[:, None] * H * c)[-1])
    rho = 1e-3
    _, losses = find_worst(Subject(problem), "l2", rho, c, steps=60, restarts=3, seed=0)
    assert 2 * max(losses) / rho**2 == pytest.approx(truth, rel=1e-3)  # the third order is ρ


@pytest.mark.parametrize("radius", [0.1, 1.0, 10.0])
def test_worst_case_of_a_quadratic_is_that_of_the_trust_region(radius: float) -> None:
    problem, g, H = quadratic()
    values, vectors = torch.linalg.eigh(H)
    along = vectors.T @ g

    def length(mu: float) -> float:  # of the maximiser (μI − H)⁻¹ g, μ ≥ λ₁
        return float((along / (mu - values)).norm())

    low, high = float(values[-1]) + 1e-12, float(values[-1]) + 1e6
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if length(mu) > radius else (low, mu)
    best = vectors @ (along / (low - values))
    truth = float(g @ best + best @ H @ best / 2)
    offset, _ = find_worst(
        Subject(problem), "l2", radius, torch.ones_like(g), steps=60, restarts=2, seed=0
    )
    assert float(offset.norm()) == pytest.approx(radius, rel=1e-9)
    assert Subject(problem).rise(offset)[0] == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_in_the_cube_is_the_best_of_all_corners(adaptive: bool) -> None:
    problem, g, H = quadratic()
    c, radius = scaling(problem, adaptive), 0.7
    # A convex function is largest at a corner; there are 2⁴.
    corners = [
        c * radius * torch.tensor(s, dtype=DOUBLE) for s in itertools.product((-1, 1), repeat=4)
    ]
    truth = max(float(g @ d + d @ H @ d / 2) for d in corners)
    offset, _ = find_worst(Subject(problem), "linf", radius, c, steps=20, restarts=6, seed=0)
    assert Subject(problem).rise(offset)[0] == pytest.approx(truth, rel=1e-10)


def test_ascent_never_leaves_the_ball_nor_falls_below_the_centre() -> None:
    """Where every step lowers the loss, the worst case in the ball is its centre."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    problem = ls.Problem.from_closure(
        model, lambda m, batch: (-m.weight.square().sum(), 1.0), [torch.zeros(1)]
    )
    subject = Subject(problem)
    offset, losses = find_worst(
        subject, "l2", 1.0, torch.ones(1, dtype=DOUBLE), steps=10, restarts=1, seed=0
    )
    assert float(offset) == 0 and losses == [0.0]


def test_ascent_finds_a_maximum_inside_the_ball() -> None:
    """Steps as long as the ball is wide leap over it; they are halved."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    problem = ls.Problem.from_closure(
        model, lambda m, batch: (-(m.weight - 0.3).square().sum(), 1.0), [torch.zeros(1)]
    )
    one = torch.ones(1, dtype=DOUBLE)
    for norm in ("l2", "linf"):
        offset, _ = find_worst(Subject(problem), norm, 1.0, one, steps=30, restarts=1, seed=0)
        assert float(offset) == pytest.approx(0.3, abs=1e-3)


def test_one_step_is_the_perturbation_of_sam_and_asam() -> None:
    problem, (x, y) = classifier(), data()
    g, w, rho, adaptive_rho = problem.gradient(), weights(problem), 0.3, 0.8
    found = ls.sharpness(problem, measures="worst", rho=rho, adaptive_rho=adaptive_rho, steps=1)
    center = loss_of(problem, x, y, w)
    sam = rho * g / g.norm()
    asam = adaptive_rho * w.square() * g / (w.abs() * g).norm()
    for name, step in (("one step ℓ₂", sam), ("adaptive one step ℓ₂", asam)):
        truth = float(loss_of(problem, x, y, w + step) - center)
        assert found[name].value == pytest.approx(truth, rel=1e-12)


def test_adaptive_scaling_of_matrices_leaves_biases_at_one() -> None:
    subject = Subject(classifier())
    c, _ = subject.scaling(True, "matrices")
    for part, tensor in zip(
        subject.problem.layout.split(c), subject.problem.selected(), strict=True
    ):
        truth = tensor.detach().abs() if tensor.ndim > 1 else torch.ones_like(tensor)
        assert torch.equal(part, truth)
    assert torch.equal(subject.scaling(True, "all")[0], subject.weights.abs())


def test_errors_of_a_rise_are_those_over_samples() -> None:
    problem, (x, y) = classifier(), data()
    w = weights(problem)
    step = steepest(problem.gradient(), "l2", 0.3)
    rises = torch.stack(
        [
            loss_of(problem, x[i : i + 1], y[i : i + 1], w + step)
            - loss_of(problem, x[i : i + 1], y[i : i + 1], w)
            for i in range(len(x))
        ]
    )
    found = ls.sharpness(problem, measures="worst", rho=0.3, steps=1)["one step ℓ₂"]
    assert found.standard_error == pytest.approx(float(rises.std() / len(x) ** 0.5), rel=1e-9)


# m-sharpness


def test_batches_of_m_are_dealt_at_random_and_of_exactly_that_size() -> None:
    x, y = torch.arange(23, dtype=DOUBLE)[:, None], torch.zeros(23, 1, dtype=DOUBLE)
    problem = ls.Problem(nn.Linear(1, 1).double(), "mse", (x, y), batch_size=10)
    dealt = random_batches(problem, 5, 8, seed=0)
    assert dealt is not None
    rows = [batch[0][:, 0].tolist() for batch in dealt.batches()]
    assert [len(part) for part in rows] == [5, 5, 5, 5]
    chosen = [value for part in rows for value in part]
    assert len(set(chosen)) == 20 and max(chosen) > 19  # not the first twenty
    assert all(max(part) - min(part) > 5 for part in rows)
    assert random_batches(problem, 12, 8, seed=0) is None  # a single one


def test_batches_are_dealt_without_evaluating_larger_ones() -> None:
    """Which might not fit into memory; nor in many smaller ones."""
    x, y = torch.randn(24, 1, dtype=DOUBLE), torch.zeros(24, 1, dtype=DOUBLE)
    seen = []
    model = nn.Linear(1, 1).double()
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    problem = ls.Problem(model, "mse", (x, y), batch_size=4)
    for size, most in ((1, 4), (4, 4), (6, 6)):
        seen.clear()
        assert random_batches(problem, size, 2, seed=0) is not None
        assert max(seen) == most


def test_m_sharpness_says_how_large_m_may_be() -> None:
    for count, sentence in (
        (24, "24 samples are less than two batches of 128: choose m of at most 12"),
        (1, "there is only one sample"),
    ):
        problem = ls.Problem(tanh_net(), "cross_entropy", data(count))
        assert sentence in ls.sharpness(problem, measures="m").left_out["m"]
    model = tanh_net()
    closure = ls.Problem.from_closure(model, lambda m, x: (m(x).mean(), 1.0), [data()[0]] * 9)
    assert "dealt into batches" in ls.sharpness(closure, measures="m", m=1).left_out["m"]


def test_m_sharpness_of_a_loss_of_zero_is_measured() -> None:
    """Its value is nothing but rounding, which differs between batches."""
    found = ls.sharpness(critical_point(), measures="m", m=2, steps=4)["m-sharpness ℓ₂"]
    assert found.value > 0
    assert found.gradients == pytest.approx(5 * 8 * 2 / 24)  # eight batches of two


def test_m_sharpness_of_single_samples_has_a_closed_form() -> None:
    problem, _, _ = quadratic(count=8)
    (x, y), w, rho = next(iter(problem.batches())), weights(problem), 0.3
    residual = (x @ w - y[:, 0]).abs()
    each = (residual + rho * x.norm(dim=1)).square() - residual.square()
    found = ls.sharpness(problem, measures="m", m=1, rho=rho, steps=5)["m-sharpness ℓ₂"]
    assert found.m == 1 and found.error_from == "batches"
    assert found.gradients == 6  # one at the centre
    assert found.value == pytest.approx(float(each.mean()), rel=1e-9)
    assert found.standard_error == pytest.approx(float(each.std() / 8**0.5), rel=1e-9)


def test_m_sharpness_is_at_least_the_sharpness_of_all_the_data() -> None:
    problem = classifier()
    options = {"rho": 0.3, "adaptive_rho": 0.3, "steps": 30}
    of_all = ls.sharpness(problem, measures="worst", **options)  # type: ignore[arg-type]
    of_m = ls.sharpness(problem, measures="m", m=6, **options)  # type: ignore[arg-type]
    assert of_m["m-sharpness ℓ₂"].value > of_all["worst case ℓ₂"].value
    assert of_m["adaptive m-sharpness ℓ₂"].value > of_all["adaptive worst case ℓ₂"].value
