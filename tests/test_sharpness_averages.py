"""Average rises of the loss, and rises of the loss of normalised logits, equal their definitions."""

import pytest
import torch
from sharpness_cases import DOUBLE, classifier, critical_point, data, quadratic, scaling, weights
from torch.nn.functional import cross_entropy

import landscape as ls
from landscape.analyses.sharpness.averages import average_rise
from landscape.analyses.sharpness.normalised import logit_normalised
from landscape.analyses.sharpness.subject import Subject

# Averages


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_tends_to_the_scaled_trace(adaptive: bool) -> None:
    problem = classifier()  # not at a critical point: odd orders cancel in every pair
    c, rho = scaling(problem, adaptive), 1e-3
    H = ls.Hessian(problem).dense()
    truth = float((c.square() * H.diagonal()).sum())
    value, error = average_rise(Subject(problem), rho * c, draws=100, seed=0)
    found, off = 2 * value / rho**2, 2 * error / rho**2
    assert off < 0.2 * abs(truth)
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
    subject = Subject(problem)
    assert torch.equal(subject.gradient, problem.gradient())
    other = subject.on(logit_normalised(problem))
    assert torch.equal(other.gradient, other.problem.gradient())


def test_larger_logits_change_only_the_loss_that_is_not_normalised() -> None:
    problem = classifier()
    before = ls.sharpness(problem, measures=["average", "normalised"], steps=5, draws=5)
    last = problem.model[2]  # type: ignore[index]
    with torch.no_grad():
        last.weight *= 10
        last.bias *= 10
    after = ls.sharpness(problem, measures=["average", "normalised"], steps=5, draws=5)
    for name in ("adaptive average", "adaptive worst case ℓ₂", "adaptive worst case ℓ∞"):
        name = f"logit-normalised {name}"
        assert after[name].value == pytest.approx(before[name].value, rel=1e-8)
    assert after["adaptive average"].value > 2 * before["adaptive average"].value


def test_normalised_logits_need_a_cross_entropy() -> None:
    found = ls.sharpness(critical_point(), measures="normalised")
    assert not found.measures
    assert found.left_out == {"normalised": "the loss is no cross-entropy of logits"}
