"""Optimal brain surgery against its closed form in dense float64, and against the constrained minimum."""

import math
import re

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.surgeon import group_saliencies, remove, saliencies
from landscape.operators.inverse_fisher import InverseFisher

EXAMPLE = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
WEIGHTS = torch.tensor([1.0, -0.5, 0.2])


def fisher(gradients: Tensor, damping: float) -> Tensor:
    g = gradients.double()
    return damping * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)


def random_problem(m: int, size: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(m + size)
    return scale * torch.randn(m, size, generator=source), torch.randn(size, generator=source)


def test_worked_example_of_single_weights() -> None:
    inverse = InverseFisher.from_gradients(EXAMPLE, damping=0.5)
    expected = torch.tensor([7 / 22, 7 / 32, 0.0175], dtype=torch.float64)
    assert torch.allclose(saliencies(inverse, WEIGHTS), expected, rtol=1e-7)
    update, rise = remove(inverse, WEIGHTS, torch.tensor([False, False, True]))
    after = torch.tensor([1.05, -0.55, 0.0], dtype=torch.float64)
    # 0.2 in float32 is 0.2 to 1.5e-8.
    assert torch.allclose(WEIGHTS + update, after, atol=1e-7)
    assert float(rise) == pytest.approx(0.0175, rel=1e-7)


def test_worked_example_is_the_joint_update_not_the_sum_of_single_ones() -> None:
    inverse = InverseFisher.from_gradients(EXAMPLE, damping=0.5)
    removed = torch.tensor([False, True, True])
    update, rise = remove(inverse, WEIGHTS, removed)
    after = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(WEIGHTS + update, after, atol=1e-7)
    assert float(rise) == pytest.approx(0.32, rel=1e-7)
    singles = sum(remove(inverse, WEIGHTS, torch.arange(3) == i)[0] for i in (1, 2))
    naive = torch.where(removed, -WEIGHTS.double(), singles)
    F = fisher(EXAMPLE, 0.5)
    assert float(0.5 * naive @ F @ naive) == pytest.approx(0.32125, rel=1e-6)


# Down to λ = 1e-7 the closed form in dense float64 itself loses about κ(F) ε ≈ 1e-8 (κ = 1e8).
@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-7])
@pytest.mark.parametrize(("m", "size"), [(7, 30), (40, 30), (5, 5)])
def test_joint_update_matches_dense_float64(m: int, size: int, damping: float) -> None:
    gradients, weights = random_problem(m, size)
    inverse = InverseFisher.from_gradients(gradients, damping)
    removed = torch.arange(size) % 3 == 0
    update, rise = remove(inverse, weights, removed)
    F, w = fisher(gradients, damping), weights.double()
    kept = ~removed
    delta = torch.linalg.solve(F[kept][:, kept], F[kept][:, removed] @ w[removed])
    assert torch.equal(update[removed], -w[removed])
    assert torch.allclose(update[kept], delta, rtol=1e-6, atol=1e-7)
    block = torch.linalg.inv(F)[removed][:, removed]
    expected = 0.5 * w[removed] @ torch.linalg.solve(block, w[removed])
    assert float(rise) == pytest.approx(float(expected), rel=1e-6)
    assert float(rise) == pytest.approx(float(0.5 * update @ F @ update), rel=1e-6)


def test_joint_update_is_the_constrained_minimum() -> None:
    gradients, weights = random_problem(6, 9)
    removed = torch.arange(9) < 4
    update, rise = remove(InverseFisher.from_gradients(gradients, 0.1), weights, removed)
    F, w = fisher(gradients, 0.1).numpy(), weights.double().numpy()

    def loss(kept):  # type: ignore[no-untyped-def]
        delta = -w.copy()
        delta[4:] = kept
        return 0.5 * delta @ F @ delta

    found = minimize(loss, [0.0] * 5, tol=1e-12)
    assert float(rise) == pytest.approx(found.fun, rel=1e-8)
    assert update[4:].tolist() == pytest.approx(found.x.tolist(), abs=1e-5)


def test_small_damping_in_float32_keeps_its_digits() -> None:
    """Rows of float32 at λ = 1e-7: only the rows are rounded, and the work is exact."""
    gradients, weights = random_problem(64, 2000, scale=0.03)
    removed = torch.arange(2000) % 2 == 0
    update, rise = remove(InverseFisher.from_gradients(gradients, 1e-7), weights, removed)
    kept, w = ~removed, weights.double()
    left, right = gradients.double()[:, kept], gradients.double()[:, removed]
    # The minimum by ridge regression: ‖G_K δ − u‖² + mλ‖δ‖², by singular values.
    u, s, v = torch.linalg.svd(left, full_matrices=False)
    expected = v.T @ ((s / (s**2 + 64e-7)) * (u.T @ (right @ w[removed])))
    assert float((update[kept] - expected).norm() / expected.norm()) < 1e-10
    rest = left @ expected - right @ w[removed]
    value = 0.5 * (1e-7 * (expected.square().sum() + w[removed].square().sum()) + rest @ rest / 64)
    assert float(rise) == pytest.approx(float(value), rel=1e-9)


def test_damping_lost_in_rounding_is_refused_and_the_one_named_is_enough() -> None:
    """More gradients than weights, 1e7 large: at λ = 1e-5 the update would be noise."""
    gradients, weights = random_problem(100, 40, scale=1e7)
    removed = torch.arange(40) % 2 == 0
    with pytest.raises(InputError, match="damping 1e-05 is lost in rounding") as refusal:
        remove(InverseFisher.from_gradients(gradients, 1e-5), weights, removed)
    named = 1.1 * float(re.findall(r"raise it to (\S+)", str(refusal.value))[0])
    update, _ = remove(InverseFisher.from_gradients(gradients, named), weights, removed)
    F, w, kept = fisher(gradients, named), weights.double(), ~removed
    expected = torch.linalg.solve(F[kept][:, kept], F[kept][:, removed] @ w[removed])
    assert float((update[kept] - expected).norm() / expected.norm()) < 1e-2
    # As large, but fewer than what stays: nothing is lost.
    remove(InverseFisher.from_gradients(gradients[:10], 1e-5), weights, removed)


def test_removing_one_weight_costs_its_saliency() -> None:
    gradients, weights = random_problem(8, 12)
    inverse = InverseFisher.from_gradients(gradients, 0.01)
    found = saliencies(inverse, weights)
    rises = [float(remove(inverse, weights, torch.arange(12) == i)[1]) for i in range(12)]
    assert found.tolist() == pytest.approx(rises, rel=1e-9)


@pytest.mark.parametrize("size", [1, 4, 24])
def test_removing_a_group_costs_its_saliency(size: int) -> None:
    """Groups smaller and larger than the number of gradients, and everything at once."""
    gradients, weights = random_problem(8, 24)
    inverse = InverseFisher.from_gradients(gradients, 0.01)
    groups = [slice(i, i + size) for i in range(0, 24, size)]
    found = group_saliencies(inverse, weights, groups)
    dense = torch.linalg.inv(fisher(gradients, 0.01))
    for place, where in enumerate(groups):
        w = weights.double()[where]
        expected = 0.5 * w @ torch.linalg.solve(dense[where, where], w)
        assert float(found[place]) == pytest.approx(float(expected), rel=1e-8)
        removed = torch.zeros(24, dtype=torch.bool)
        removed[where] = True
        assert float(remove(inverse, weights, removed)[1]) == pytest.approx(
            float(expected), rel=1e-8
        )


def test_group_may_lie_anywhere() -> None:
    gradients, weights = random_problem(8, 24)
    inverse = InverseFisher.from_gradients(gradients, 0.01)
    scattered = group_saliencies(inverse, weights, [torch.arange(3, 7), torch.tensor([0, 9, 20])])
    assert scattered[0] == group_saliencies(inverse, weights, [slice(3, 7)])[0]
    assert math.isfinite(float(scattered[1]))


def test_many_pieces_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape.operators import gradient_rows

    gradients, weights = random_problem(8, 24)
    removed = torch.arange(24) % 2 == 0
    whole = remove(InverseFisher.from_gradients(gradients, 0.01), weights, removed)
    monkeypatch.setattr(gradient_rows, "PIECE", 8 * 5)
    parts = remove(InverseFisher.from_gradients(gradients, 0.01), weights, removed)
    assert torch.allclose(whole[0], parts[0], rtol=1e-10)
    assert float(whole[1]) == pytest.approx(float(parts[1]), rel=1e-10)
