"""M-FAC's two recursions: the paper's intermediates, and equality with the core."""

import math

import pytest
import torch
from torch import Tensor

import landscape as ls
from landscape.operators.mfac_dynamic import DynamicMFAC
from landscape.operators.mfac_static import StaticMFAC
from landscape.operators.sparse_rows import SparseRows

DOUBLE = torch.float64
EXAMPLE = torch.tensor([[1.0, 2, 0], [0, 1, -1]], dtype=DOUBLE)
DAMPING = 0.5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def close(found: Tensor, expected: Tensor, relative: float = 1e-13) -> bool:
    assert found.shape == expected.shape
    return float((found - expected).norm()) <= relative * float(expected.norm())


def window_of(gradients: Tensor, capacity: int, damping: float) -> DynamicMFAC:
    window = DynamicMFAC(gradients.shape[1], capacity, damping, dtype=gradients.dtype)
    for gradient in gradients:
        window.push(gradient)
    return window


RECURSIONS = {
    "static": lambda: StaticMFAC(EXAMPLE, DAMPING),
    "dynamic": lambda: window_of(EXAMPLE, 2, DAMPING),
    "dynamic, warming up": lambda: window_of(EXAMPLE, 7, DAMPING),
    "dynamic, gone round": lambda: window_of(torch.cat([random(3, 3), EXAMPLE]), 2, DAMPING),
}
recursions = pytest.mark.parametrize("name", RECURSIONS)
dynamic = pytest.mark.parametrize("name", [name for name in RECURSIONS if name != "static"])


@recursions
def test_v_of_the_worked_example(name):
    expected = torch.tensor([[2.0, 4, 0], [-2 / 3, 2 / 3, -2]], dtype=DOUBLE)
    assert close(RECURSIONS[name]().v, expected)


@recursions
def test_q_of_the_worked_example(name):
    assert close(RECURSIONS[name]().q, torch.tensor([12, 14 / 3], dtype=DOUBLE))


@dynamic
def test_d_of_the_worked_example(name):
    assert close(RECURSIONS[name]().D, torch.tensor([[10, 4], [0, 8 / 3]], dtype=DOUBLE))


@dynamic
def test_b_of_the_worked_example(name):
    assert close(RECURSIONS[name]().B, torch.tensor([[2, 0], [-2 / 3, 2]], dtype=DOUBLE))


@recursions
def test_x_of_the_worked_example(name):
    expected = torch.tensor([5.0, 2, 8], dtype=DOUBLE) / 7
    assert close(RECURSIONS[name]() @ torch.ones(3, dtype=DOUBLE), expected)


@recursions
def test_the_inverse_of_the_worked_example(name):
    expected = torch.tensor([[11.0, -4, -2], [-4, 4, 2], [-2, 2, 8]], dtype=DOUBLE) / 7
    assert close(RECURSIONS[name]().dense(), expected)


@recursions
def test_the_log_determinant_of_the_worked_example(name):
    assert RECURSIONS[name]().logdet() == pytest.approx(-0.5596158, abs=1e-7)
    assert RECURSIONS[name]().logdet() == pytest.approx(-math.log(1.75), rel=1e-13)


@recursions
def test_the_trace_of_the_worked_example(name):
    assert RECURSIONS[name]().trace() == pytest.approx(23 / 7, rel=1e-13)


def test_entries_and_diagonal_of_the_worked_example():
    static = StaticMFAC(EXAMPLE, DAMPING)
    expected = torch.tensor([11.0, 4, 8], dtype=DOUBLE) / 7
    assert close(static.diagonal(), expected)
    assert static.entry(0, 2) == pytest.approx(-2 / 7, rel=1e-13)
    assert static.entry(1, 1) == pytest.approx(4 / 7, rel=1e-13)


# Both recursions subtract nearly equal numbers as λ falls: their own digits are 1e-16 · s/(mλ).


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_the_static_recursion_is_the_core(count):
    G, x = random(count, 50), random(50, 3, seed=1)
    core, static = ls.InverseFisher.from_gradients(G, 0.01), StaticMFAC(G, 0.01)
    assert torch.equal(G, random(count, 50))  # the gradients are left alone
    assert close(static @ x, core @ x, 1e-11)
    assert close(static.diagonal(), core.diagonal(), 1e-11)
    assert static.entry(3, 40) == pytest.approx(core.entry(3, 40), rel=1e-9)
    assert static.logdet() == pytest.approx(core.logdet(), rel=1e-11)
    assert static.trace() == pytest.approx(core.trace(), rel=1e-11)


def test_the_static_recursion_follows_its_definition():
    G, damping = random(5, 9), 0.1
    static = StaticMFAC(G, damping)
    inverse = torch.eye(9, dtype=DOUBLE) / damping
    for i, g in enumerate(G):  # Sherman–Morrison on the dense matrix
        v = inverse @ g
        q = 5 + g @ v
        assert close(static.v[i], v, 1e-12)
        assert float(static.q[i]) == pytest.approx(float(q), rel=1e-12)
        inverse = inverse - torch.outer(v, v) / q


def agrees(window: DynamicMFAC, gradients: Tensor) -> None:
    """The window is the core of these gradients, in every method."""
    core = ls.InverseFisher.from_gradients(gradients.clone(), window.damping)
    x, c = random(gradients.shape[1], 3, seed=1), random(len(gradients), 2, seed=2)
    assert window.count == len(gradients)
    assert close(window @ x, core @ x, 1e-11)
    assert close(window @ x[:, 0], core @ x[:, 0], 1e-11)
    assert close(window.span(c), core.span(c), 1e-11)
    assert close(window.newest(), core @ gradients[-1], 1e-11)
    assert close(window.gram, core.gram, 1e-14)
    assert window.logdet() == pytest.approx(core.logdet(), rel=1e-11)
    assert window.trace() == pytest.approx(core.trace(), rel=1e-11)
    dense = core.dense()
    assert close(window.dense(), dense, 1e-11)
    partial = torch.eye(len(dense), dtype=DOUBLE) / window.damping
    for i, g in enumerate(gradients):  # D by its definition, and v
        assert close(window.D[i, i:], g @ partial @ gradients[i:].T, 1e-10)
        assert close(window.v[i], partial @ g, 1e-10)
        partial -= torch.outer(partial @ g, partial @ g) / window.q[i]
    assert close(partial, dense, 1e-10)


def test_the_window_is_the_core_of_the_gradients_seen_last():
    G = random(13, 20)
    window = DynamicMFAC(20, 5, 0.01, dtype=DOUBLE)
    for i in range(13):
        window.push(G[i])
        agrees(window, G[max(0, i - 4) : i + 1])  # while it fills, m is the number seen


def test_any_gradient_can_be_removed():
    G = random(9, 12)
    window = window_of(G[:6], 5, 0.1)  # holds 1 … 5
    window.remove(2)
    agrees(window, G[[1, 2, 4, 5]])
    window.remove(-1)
    agrees(window, G[[1, 2, 4]])
    window.push(G[6])
    window.push(G[7])
    agrees(window, G[[1, 2, 4, 6, 7]])
    window.push(G[8])
    agrees(window, G[[2, 4, 6, 7, 8]])


def test_an_empty_window_is_the_damping_alone():
    window = DynamicMFAC(4, 3, 0.5)
    x = torch.arange(4.0)
    assert torch.equal(window @ x, 2 * x)
    assert window.trace() == 8
    assert window.logdet() == pytest.approx(4 * math.log(2))
    with pytest.raises(ls.InputError, match="window is empty: push"):
        window.newest()


def test_another_damping_needs_no_other_gradients():
    window = window_of(random(4, 8), 4, 0.1)
    window.newest()
    window.damping = 0.7
    agrees(window, random(4, 8))


@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-7])
def test_the_newest_gradient_keeps_its_digits_in_float32(damping):
    G = random(64, 2000).float()
    window = window_of(G, 64, damping)
    expected = (
        64
        * G.double().T
        @ torch.linalg.solve(
            G.double() @ G.double().T + 64 * damping * torch.eye(64),
            torch.eye(64, dtype=DOUBLE)[:, -1],
        )
    )
    assert close(window.newest().double(), expected, 1e-6)
    assert close((window @ G[-1]).double(), expected, 1e-5)


def test_a_damping_lost_in_rounding_is_refused():
    window = window_of(torch.full([40, 3], 1.1, dtype=DOUBLE), 40, 1e-17)
    with pytest.raises(ls.InputError, match="1e-17 is lost beside gradients of size 1.91: choose"):
        window.newest()
    window.damping = 1e-9
    window.newest()
    independent = window_of(random(5, 20), 5, 1e-17)  # which need none
    limit = 5 * torch.linalg.pinv(random(5, 20))[:, -1]  # λ → 0
    assert close(independent.newest(), limit, 1e-10)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_a_window_goes_on_from_its_state_to_the_last_bit(storage):
    def fresh() -> DynamicMFAC:
        rows = SparseRows(4, 300, share=0.05) if storage == "sparse" else None
        return DynamicMFAC(300, 4, 0.01, rows=rows)

    G = random(9, 300).float()
    window, other = fresh(), fresh()
    window.damping = 0.03
    for g in G[:6]:
        window.push(g)
    window.remove(1)
    state = {name: tensor.clone() for name, tensor in window.state_dict().items()}
    other.load_state_dict(state)
    for g in G[6:]:
        window.push(g)
        other.push(g)
        assert torch.equal(window.newest(), other.newest())
        assert torch.equal(window @ g, other @ g)


def test_sparse_gradients_in_a_window():
    rows = SparseRows(4, 300, dtype=DOUBLE, share=0.05)
    window = DynamicMFAC(300, 4, 0.01, rows=rows)
    for g in random(7, 300):
        window.push(g)
    agrees(window, rows.columns(slice(None))[window.order])


def test_a_refused_state_changes_nothing():
    window, x = window_of(random(3, 5), 3, 0.1), random(5, seed=1)
    before = window @ x
    for state in (
        {},
        {**window_of(random(3, 5).float(), 3, 0.1).state_dict()},
        {**window.state_dict(), "rows": torch.zeros(3, 6, dtype=DOUBLE)},
    ):
        with pytest.raises(ls.InputError, match="the state (lacks|has)"):
            window.load_state_dict(state)
        assert torch.equal(window @ x, before)


def test_what_cannot_be_is_refused_in_a_sentence():
    window = window_of(random(2, 5), 3, 1.0)
    for sentence, call in (
        ("damping is 0", lambda: StaticMFAC(random(2, 5), 0)),
        ("gradient 1 holds a number that is not finite", lambda: StaticMFAC(random(3, 5) / torch.tensor([[1], [0], [1]]), 1)),
        ("not finite in torch.float64", lambda: window.push(torch.full([5], math.nan))),
        ("damping is -1", lambda: DynamicMFAC(5, 3, -1)),
        ("damping is 0", lambda: setattr(window, "damping", 0)),
        ("capacity is 0", lambda: DynamicMFAC(5, 0, 1.0)),
        (r"must be \(3, 5\)", lambda: DynamicMFAC(5, 3, 1.0, rows=SparseRows(2, 5))),
        (r"shape \(4,\): it must be real, of shape \(5,\)", lambda: window.push(torch.ones(4))),
        ("no gradient 2: the window holds 2", lambda: window.remove(2)),
        ("each of the 2 gradients", lambda: window.span(torch.ones(3))),
        ("window of 4 gradients, this one", lambda: window.load_state_dict(window_of(random(2, 5), 4, 1.0).state_dict())),
        (r"\(3, 6\) in torch.float64 as 'rows', and \(3, 5\)", lambda: window.load_state_dict(window_of(random(2, 6), 3, 1.0).state_dict())),
    ):  # fmt: skip
        with pytest.raises(ls.InputError, match=sentence):
            call()
