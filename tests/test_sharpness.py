"""Every measure of sharpness equals its definition: closed forms, dense float64 matrices, exhaustive search."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import landscape as ls
from landscape.analyses.sample_groups import random_batches
from landscape.analyses.sharpness.averages import average_rise
from landscape.analyses.sharpness.balls import steepest, worst
from landscape.analyses.sharpness.critical import PASSES, critical_step
from landscape.analyses.sharpness.normalised import logit_normalised
from landscape.analyses.sharpness.pac_bayes import noise_of_drop
from landscape.analyses.sharpness.smoothness import reliable_radius
from landscape.analyses.sharpness.subject import Subject

DOUBLE = torch.float64


def tanh_net(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def data(count: int = 24, inputs: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(count, inputs, generator=source, dtype=DOUBLE)
    return x, torch.randint(classes, (count,), generator=source)


def classifier() -> ls.Problem:
    return ls.Problem(tanh_net(), "cross_entropy", data(), batch_size=10)  # 10 + 10 + 4


def critical_point() -> ls.Problem:
    """A loss of zero: its gradient vanishes, and the Hessian is positive semidefinite."""
    model, (x, _) = tanh_net(), data()
    return ls.Problem(model, "mse", (x, model(x).detach()))


def quadratic(count: int = 6, inputs: int = 4) -> tuple[ls.Problem, Tensor, Tensor]:
    """Linear least squares: L(w + δ) − L(w) = gᵀδ + ½ δᵀHδ exactly."""
    torch.manual_seed(3)
    model = nn.Linear(inputs, 1, bias=False).double()
    x, _ = data(count, inputs)
    problem = ls.Problem(model, "mse", (x, torch.randn(count, 1, dtype=DOUBLE)))
    return problem, problem.gradient(), 2 * x.T @ x / count


def weights(problem: ls.Problem) -> Tensor:
    return nn.utils.parameters_to_vector(problem.model.parameters()).detach()


def loss_of(problem: ls.Problem, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The loss at other weights, by torch alone."""
    shapes = {name: p.shape for name, p in problem.model.named_parameters()}
    parts = w.split([shape.numel() for shape in shapes.values()])
    named = {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    output = functional_call(problem.model, named, (x,))
    return mse_loss(output, y) if y.is_floating_point() else cross_entropy(output, y)


def scaling(problem: ls.Problem, adaptive: bool) -> Tensor:
    w = weights(problem)
    return w.abs() if adaptive else torch.ones_like(w)


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
    _, losses = worst(Subject(problem), "l2", rho, c, steps=60, restarts=3, seed=0)
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
    offset, _ = worst(
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
    offset, _ = worst(Subject(problem), "linf", radius, c, steps=20, restarts=6, seed=0)
    assert Subject(problem).rise(offset)[0] == pytest.approx(truth, rel=1e-10)


def test_ascent_never_leaves_the_ball_nor_falls_below_the_centre() -> None:
    """Where every step lowers the loss, the worst case in the ball is its centre."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    problem = ls.Problem.from_closure(
        model, lambda m, batch: (-m.weight.square().sum(), 1.0), [torch.zeros(1)]
    )
    subject = Subject(problem)
    offset, losses = worst(
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
        offset, _ = worst(Subject(problem), norm, 1.0, one, steps=30, restarts=1, seed=0)
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
    c = subject.scaling(True, "matrices")
    for part, tensor in zip(
        subject.problem.layout.split(c), subject.problem.selected(), strict=True
    ):
        truth = tensor.detach().abs() if tensor.ndim > 1 else torch.ones_like(tensor)
        assert torch.equal(part, truth)
    assert torch.equal(subject.scaling(True, "all"), subject.weights.abs())


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


def test_m_sharpness_of_single_samples_has_a_closed_form() -> None:
    problem, _, _ = quadratic(count=8)
    (x, y), w, rho = next(iter(problem.batches())), weights(problem), 0.3
    residual = (x @ w - y[:, 0]).abs()
    each = (residual + rho * x.norm(dim=1)).square() - residual.square()
    found = ls.sharpness(problem, measures="m", m=1, rho=rho, steps=5)["m-sharpness ℓ₂"]
    assert found.m == 1 and found.error_from == "batches"
    assert found.value == pytest.approx(float(each.mean()), rel=1e-9)
    assert found.standard_error == pytest.approx(float(each.std() / 8**0.5), rel=1e-9)


def test_m_sharpness_is_at_least_the_sharpness_of_all_the_data() -> None:
    problem = classifier()
    options = {"rho": 0.3, "adaptive_rho": 0.3, "steps": 30}
    of_all = ls.sharpness(problem, measures="worst", **options)  # type: ignore[arg-type]
    of_m = ls.sharpness(problem, measures="m", m=6, **options)  # type: ignore[arg-type]
    assert of_m["m-sharpness ℓ₂"].value > of_all["worst case ℓ₂"].value
    assert of_m["adaptive m-sharpness ℓ₂"].value > of_all["adaptive worst case ℓ₂"].value


# Averages


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_tends_to_the_scaled_trace(adaptive: bool) -> None:
    problem = classifier()  # not at a critical point: odd orders cancel in every pair
    c, rho = scaling(problem, adaptive), 1e-3
    H = ls.Hessian(problem).dense()
    truth = float((c.square() * H.diagonal()).sum())
    value, error = average_rise(Subject(problem), rho * c, draws=300, seed=0)
    found, off = 2 * value / rho**2, 2 * error / rho**2
    assert off < 0.1 * abs(truth)
    assert abs(found - truth) < 4 * off


def test_average_of_a_quadratic_is_that_of_its_own_draws() -> None:
    problem, _, H = quadratic()
    subject, rho = Subject(problem), 0.4
    z = torch.cat(list(subject.normal(7, 5)), dim=1)
    each = rho**2 * ((H @ z) * z).sum(0) / 2
    value, error = average_rise(subject, torch.full((4,), rho, dtype=DOUBLE), draws=7, seed=5)
    assert value == pytest.approx(float(each.mean()), rel=1e-10)
    assert error == pytest.approx(float(each.std() / 7**0.5), rel=1e-9)


def test_rows_of_the_average_are_as_long_as_the_ball_is_wide() -> None:
    """Of standard deviation ρ/√P, so that E‖δ‖² = ρ², or ρ²·mean(c²) relative to the weights."""
    problem, _, H = quadratic()
    w = weights(problem)
    z = torch.cat(list(Subject(problem).normal(9, 0)), dim=1)
    found = ls.sharpness(problem, measures="average", rho=0.3, adaptive_rho=0.8, draws=9)
    for name, rho, c in (("average", 0.3, torch.ones_like(w)), ("adaptive average", 0.8, w.abs())):
        delta = rho / 2 * c[:, None] * z  # √P = 2
        truth = float(((H @ delta) * delta).sum(0).mean() / 2)
        assert found[name].value == pytest.approx(truth, rel=1e-9)
        assert found[name].rho == rho / 2


def test_blocks_of_draws_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(classifier())
    monkeypatch.setattr(
        "landscape.analyses.sharpness.subject.AT_ONCE_BYTES", 3 * 8 * subject.problem.size
    )
    blocks = list(subject.normal(7, 2))
    assert [block.shape[1] for block in blocks] == [3, 3, 1]
    again = list(subject.normal(7, 2))
    assert all(torch.equal(a, b) for a, b in zip(blocks, again, strict=True))
    assert not torch.equal(blocks[0], blocks[1])


# Normalised logits


def test_normalised_logits_are_centred_and_of_unit_length() -> None:
    problem, (x, y) = classifier(), data()
    logits = problem.model(x)
    centred = logits - logits.mean(1, keepdim=True)
    truth = cross_entropy(centred / centred.norm(dim=1, keepdim=True), y).item()
    assert logit_normalised(problem).loss() == pytest.approx(truth, rel=1e-12)
    assert problem.loss() == pytest.approx(cross_entropy(logits, y).item(), rel=1e-12)


def test_larger_logits_change_only_the_loss_that_is_not_normalised() -> None:
    problem = classifier()
    before = ls.sharpness(problem, measures=["average", "normalised"])
    last = problem.model[2]  # type: ignore[index]
    with torch.no_grad():
        last.weight *= 10
        last.bias *= 10
    after = ls.sharpness(problem, measures=["average", "normalised"])
    for name in ("adaptive average", "adaptive worst case ℓ₂", "adaptive worst case ℓ∞"):
        name = f"logit-normalised {name}"
        assert after[name].value == pytest.approx(before[name].value, rel=1e-8)
    assert after["adaptive average"].value > 2 * before["adaptive average"].value


def test_normalised_logits_need_a_cross_entropy() -> None:
    found = ls.sharpness(critical_point(), measures="normalised")
    assert not found.measures
    assert found.left_out == {"normalised": "the loss is no cross-entropy of logits"}


# Spectrum, gradients, Fisher–Rao


def test_spectral_rows_equal_the_dense_matrix() -> None:
    problem = classifier()
    H = ls.Hessian(problem).dense()
    exact = ls.sharpness(problem, measures=["spectral", "gradient"], probes=problem.size)
    assert exact["λ_max"].value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-6)
    assert exact["trace"].value == pytest.approx(float(H.trace()), rel=1e-9)
    assert exact["Frobenius norm"].value == pytest.approx(float(H.norm()), rel=1e-9)
    assert exact["trace"].standard_error == exact["Frobenius norm"].standard_error == 0
    assert exact["gradient norm"].value == pytest.approx(float(problem.gradient().norm()))
    rough = ls.sharpness(problem, measures="spectral", probes=20, seed=4)
    for name in ("trace", "Frobenius norm"):
        row = rough[name]
        assert 0 < abs(row.value - exact[name].value) < 4 * row.standard_error


def test_fisher_rao_norm_of_a_homogeneous_network() -> None:
    """wᵀ∇ℓ = D ⟨∂ℓ/∂f, f⟩ for D layers without biases (Liang 2019), for any targets."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)
    ).double()  # fmt: skip
    x, y = data()
    found = ls.sharpness(ls.Problem(model, "cross_entropy", (x, y)), measures="fisher-rao")
    f = model(x).detach()
    p = f.softmax(1)
    of_data = (((p - torch.eye(3, dtype=DOUBLE)[y]) * f).sum(1)).square()
    every = torch.stack(
        [((p - torch.eye(3, dtype=DOUBLE)[k]) * f).sum(1).square() for k in range(3)], 1
    )
    own = found["Fisher–Rao norm, data's targets"]
    assert own.value == pytest.approx(9 * float(of_data.mean()), rel=1e-10)
    assert own.standard_error == pytest.approx(9 * float(of_data.std() / len(x) ** 0.5), rel=1e-9)
    expected = found["Fisher–Rao norm, model's targets"].value
    assert expected == pytest.approx(9 * float((p * every).sum(1).mean()), rel=1e-10)


def test_fisher_rao_counts_samples_of_several_terms_as_the_empirical_fisher_matrix_does() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
    problem = ls.Problem(model, "mse", (x, y))
    w = weights(problem)
    found = ls.sharpness(problem, measures="fisher-rao")["Fisher–Rao norm, data's targets"]
    assert found.value == pytest.approx(float(w @ (ls.EmpiricalFisher(problem) @ w)), rel=1e-10)


def test_surrogate_gradient_norm_is_that_of_the_mean_prediction() -> None:
    model = tanh_net(outputs=1)
    x, _ = data()
    problem = ls.Problem(model, "mse", (x, torch.zeros(24, 1, dtype=DOUBLE)), batch_size=7)
    parts = torch.autograd.grad(model(x).mean(), list(model.parameters()))
    truth = 0.2 * float(torch.cat([part.reshape(-1) for part in parts]).norm())
    found = ls.sharpness(problem, measures="surrogate", rho=0.2)
    assert found["surrogate gradient norm"].value == pytest.approx(truth, rel=1e-12)
    left_out = ls.sharpness(classifier(), measures="surrogate").left_out
    assert "one number as output" in left_out["surrogate"]


# Flatness


class Threshold(nn.Module):
    """Right on every sample where its weight is positive."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * self.weight, torch.zeros_like(x[:, 0])], dim=1)


def test_pac_bayes_noise_is_a_standard_deviation_and_not_a_variance() -> None:
    """The accuracy falls by Φ(−w/s) under noise of deviation s: by 0.1 at s = w/1.2816. (Drawing with
    deviation σ² would give σ = √s: a flatness of 0.13 instead of 0.016.)"""
    w = 10.0
    x, y = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.int64)
    problem = ls.Problem(Threshold(w), "cross_entropy", (x, y))
    found = ls.sharpness(problem, measures="pac-bayes", draws=150)
    deviation = w / 1.2815516
    plain, aware = found["PAC-Bayes flatness"], found["magnitude-aware PAC-Bayes"]
    assert plain.rho == pytest.approx(plain.value**-0.5)
    # u ~ N(0, σ² w² + ε²)
    aware_truth = (deviation**2 - 1e-6) / w**2
    for row, truth in ((plain, deviation**-2), (aware, 1 / aware_truth)):
        assert 0 < row.standard_error < 0.5 * truth
        assert abs(row.value - truth) < 4 * row.standard_error


def test_noise_of_a_drop_is_the_one_at_which_its_own_draws_drop() -> None:
    """Of draws z the share 0.1 with w + σz < 0 begins at σ = −w/z of the z at that place."""
    x, y = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.int64)
    subject = Subject(ls.Problem(Threshold(2.0), "cross_entropy", (x, y)))
    z = torch.cat(list(subject.normal(30, 0)), dim=1)[0].sort().values
    sigma, _ = noise_of_drop(subject, lambda s: torch.full((1,), s, dtype=DOUBLE), draws=30, seed=0)
    assert sigma == pytest.approx(float(-2 / z[3]), rel=0.01)  # more than 3 of 30 are wrong


def test_pac_bayes_says_when_no_noise_drops_the_accuracy() -> None:
    x, y = torch.zeros(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.int64)
    found = ls.sharpness(ls.Problem(Threshold(1.0), "cross_entropy", (x, y)), measures="pac-bayes")
    assert "does not drop by 0.1" in found.left_out["pac-bayes"]
    regression = ls.sharpness(critical_point(), measures="pac-bayes")
    assert "no classes" in regression.left_out["pac-bayes"]


def test_relative_flatness_is_the_double_sum_over_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 2, 3, dtype=DOUBLE), torch.randint(3, (12,))
    problem = ls.Problem(model, "cross_entropy", (x, y))
    H = ls.Hessian(problem).dense()
    truth, begin = {}, 0
    for name, parameter in model.named_parameters():
        W = parameter.detach()
        rows = W.flatten(1) if W.ndim > 1 else W[:, None]
        if name.endswith("weight"):
            width = rows.shape[1]
            truth[name] = sum(
                float(rows[s] @ rows[t])
                * float(H[begin + s * width :, begin + t * width :][:width, :width].trace())
                for s in range(len(rows))
                for t in range(len(rows))
            )
        begin += W.numel()
    found = ls.sharpness(problem, measures="relative-flatness", probes=400)
    assert [layer.name for layer in found.layers] == list(truth)
    for layer in found.layers:
        assert 0 < layer.standard_error < 0.3 * abs(truth[layer.name])
        assert abs(layer.value - truth[layer.name]) < 4 * layer.standard_error
    total = found["relative flatness"]
    assert total.value == pytest.approx(sum(layer.value for layer in found.layers))


# Along a step


@pytest.mark.parametrize("first", [1e-3, 0.05, 1.0, 1e4])
def test_critical_step_of_a_parabola_takes_few_evaluations(first: float) -> None:
    slope, curvature = 0.3, 0.02
    found = critical_step(lambda eta: -slope * eta + curvature * eta**2 / 2, slope, first)
    assert found.passes <= PASSES < 10
    assert found.lower < 2 * slope / curvature <= found.upper <= 1.07 * found.lower


@pytest.mark.parametrize("first", [1e-3, 0.3, 30.0])
def test_critical_step_of_other_curves(first: float) -> None:
    """exp and quartic: far from parabolas; overflow counts as a rise."""
    for rise, slope in (
        (lambda eta: math.exp(min(eta, 700)) - 1 - 3 * eta, 2.0),
        (lambda eta: -eta + eta**4, 1.0),
    ):
        low, high = 1e-3, 20.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if rise(middle) > 0 else (middle, high)
        found = critical_step(rise, slope, first)
        assert found.lower <= low <= found.upper
        assert found.passes < 10


def test_critical_sharpness_of_a_quadratic_is_the_curvature_along_the_gradient() -> None:
    problem, g, H = quadratic()
    row = ls.sharpness(problem, measures="critical")["critical sharpness"]
    truth = float(g @ H @ g / (g @ g))
    assert abs(row.value - truth) <= row.standard_error * (1 + 1e-9) + 1e-12
    assert row.standard_error < 0.05 * row.value
    assert row.losses - 1 < 10  # the centre is known beside them
    assert row.value <= float(torch.linalg.eigvalsh(H)[-1])


def test_reliable_radius_of_a_lipschitz_hessian() -> None:
    """Of L(x) = ax + bx³/6 at 0: |∇L(t) − a − 0·t| = bt²/2 ≤ at/γ up to t = γ gives γ = √(2a/b)."""
    a, b = 0.4, 5.0

    def closure(model: nn.Module, batch: Tensor) -> tuple[Tensor, float]:
        x = model.weight.sum()  # type: ignore[union-attr,operator]
        return a * x + b * x**3 / 6, 1.0

    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    problem = ls.Problem.from_closure(model, closure, [torch.zeros(1)])
    for rho in (1e-4, 0.05, 20.0):
        row = ls.sharpness(problem, measures="smoothness", rho=rho).measures[0]
        assert abs(row.value - math.sqrt(2 * a / b)) <= row.standard_error * 1.01


def test_reliable_radius_looks_at_every_smaller_step_that_was_tried() -> None:
    # At 1 the error is 0.9, so that it is up to 1/0.9, whatever is beyond.
    found = reliable_radius(lambda t: 0.1 if t > 1.5 else 0.9, 1.0)
    assert found.lower <= 1 / 0.9 <= found.upper
    assert reliable_radius(lambda t: 0.0, 1.0).upper == math.inf


def test_a_quadratic_has_no_reliable_radius() -> None:
    problem, _, _ = quadratic()
    assert (
        "no reliable radius" in ls.sharpness(problem, measures="smoothness").left_out["smoothness"]
    )
