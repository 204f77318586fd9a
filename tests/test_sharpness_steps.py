"""How far a step or noise may go: critical step, reliable radius and PAC-Bayes noise equal their definitions."""

import math

import pytest
import torch
from sharpness_cases import DOUBLE, classifier, critical_point, data, quadratic, tanh_net
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.sharpness.critical import PASSES, critical_step
from landscape.analyses.sharpness.pac_bayes import noise_of_drop
from landscape.analyses.sharpness.smoothness import reliable_radius
from landscape.analyses.sharpness.subject import Subject

# Along a step


@pytest.mark.parametrize("first", [1e-3, 0.05, 1.0, 1e4])
def test_critical_step_of_a_parabola_takes_few_evaluations(first: float) -> None:
    slope, curvature = 0.3, 0.02
    found = critical_step(lambda eta: -slope * eta + curvature * eta**2 / 2, slope, first)
    assert found.passes <= PASSES < 9
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
        assert found.passes < 9


def test_critical_sharpness_of_a_quadratic_is_the_curvature_along_the_gradient() -> None:
    problem, g, H = quadratic()
    row = ls.sharpness(problem, measures="critical")["critical sharpness"]
    truth = float(g @ H @ g / (g @ g))
    assert abs(row.value - truth) <= row.standard_error * (1 + 1e-9) + 1e-12
    assert row.standard_error < 0.05 * row.value
    assert row.losses < 10  # that of the centre among them
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
        assert abs(row.value - math.sqrt(2 * a / b)) <= row.standard_error


def test_the_error_of_a_radius_reaches_to_the_ends_of_its_bracket() -> None:
    """Which is the factor 2, halved six times in the logarithm."""
    row = ls.sharpness(classifier(), measures="smoothness").measures[0]
    upper = row.value + row.standard_error
    assert (upper / row.value) ** 2 == pytest.approx(2 ** (1 / 64), rel=1e-9)


def test_reliable_radius_is_measured_in_float64_where_the_model_permits() -> None:
    x, y = data()
    x = x.float()
    problem = ls.Problem(tanh_net().float(), "cross_entropy", (x, y))
    row = ls.sharpness(problem, measures="smoothness").measures[0]
    wide = ls.Problem(tanh_net().float().double(), "cross_entropy", (x.double(), y))
    truth = ls.sharpness(wide, measures="smoothness").measures[0]
    assert row.value == truth.value and row.note.endswith("in float64")


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


# Noise


class Threshold(nn.Module):
    """Right on every sample where its weight is positive."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * self.weight, torch.zeros_like(x[:, 0])], dim=1)


def test_pac_bayes_noise_is_a_standard_deviation_and_not_a_variance() -> None:
    """The accuracy falls by Φ(−w/s) under noise of deviation s: by 0.1 at s = w/1.2816. (Drawing with
    deviation σ² would give σ = √s.)"""
    w = 0.002  # near ε
    x, y = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.int64)
    problem = ls.Problem(Threshold(w), "cross_entropy", (x, y))
    found = ls.sharpness(problem, measures="pac-bayes", draws=60)
    deviation = w / 1.2815516
    plain, aware = found["PAC-Bayes flatness"], found["magnitude-aware PAC-Bayes"]
    assert plain.rho == pytest.approx(plain.value**-0.5)
    # u ~ N(0, σ² w² + ε²)
    aware_truth = (deviation**2 - 1e-6) / w**2
    for row, truth in ((plain, deviation**-2), (aware, 1 / aware_truth)):
        assert 0 < row.standard_error < truth
        assert abs(row.value - truth) < 4 * row.standard_error
    # Of 60 draws a share of 0.1: √(0.1·0.9/60), over its slope in log σ, 1.2816 φ(1.2816).
    relative = math.sqrt(0.09 / 60) / (1.2815516 * 0.17549833)
    assert plain.standard_error / plain.value == pytest.approx(2 * relative, rel=0.4)


def test_noise_of_a_drop_is_the_one_at_which_its_own_draws_drop() -> None:
    """Of draws z the share 0.1 with w + σz < 0 begins at σ = −w/z of the z at that place."""
    x, y = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.int64)
    subject = Subject(ls.Problem(Threshold(2.0), "cross_entropy", (x, y)))
    z = torch.cat(list(subject.normal(30, 0)), dim=1)[0].sort().values
    sigma, _ = noise_of_drop(subject, lambda s: torch.full((1,), s, dtype=DOUBLE), draws=30, seed=0)
    assert sigma == pytest.approx(float(-2 / z[3]), rel=0.01)  # more than 3 of 30 are wrong


def test_pac_bayes_noise_of_labels_is_that_of_two_classes() -> None:
    """A logit is as right as the larger of it and 0."""
    x = torch.ones(1, 1, dtype=DOUBLE)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    label = ls.Problem(model, "bce_with_logits", (x, torch.ones(1, 1, dtype=DOUBLE)))
    classes = ls.Problem(Threshold(2.0), "cross_entropy", (x, torch.zeros(1, dtype=torch.int64)))
    one, other = (ls.sharpness(p, measures="pac-bayes", draws=10) for p in (label, classes))
    assert [row.value for row in one.measures] == [row.value for row in other.measures]


def test_pac_bayes_says_when_no_noise_drops_the_accuracy() -> None:
    x, y = torch.zeros(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.int64)
    found = ls.sharpness(ls.Problem(Threshold(1.0), "cross_entropy", (x, y)), measures="pac-bayes")
    for name in ("PAC-Bayes flatness", "magnitude-aware PAC-Bayes"):
        assert "does not drop by 0.1" in found.left_out[name]
    regression = ls.sharpness(critical_point(), measures="pac-bayes")
    assert "no classes" in regression.left_out["PAC-Bayes flatness"]
    # Noise of ε alone is too much for a weight of ε/10.
    sharp = Threshold(1e-4)
    x = torch.ones(1, 1, dtype=DOUBLE)
    found = ls.sharpness(ls.Problem(sharp, "cross_entropy", (x, y)), measures="pac-bayes")
    assert [row.name for row in found.measures] == ["PAC-Bayes flatness"]
    assert "drops by 0.1 at every σ" in found.left_out["magnitude-aware PAC-Bayes"]
