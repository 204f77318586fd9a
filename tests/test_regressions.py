"""Failures of existing tools, one by one: each must not happen here."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from spectra import (
    SPECTRA,
    dense_hessian,
    small_net,
    small_net_hessian,
    train,
    with_spectrum,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

import landscape as ls


def top_eigenvalue(problem: ls.Problem) -> float:
    return ls.eigenpairs(ls.Hessian(problem), 1, tolerance=1e-6).values.item()


def test_batches_of_490_and_10_weigh_by_their_samples() -> None:
    """hessian-eigenthings averages batches: 6.04 instead of 4.35 on such a loader."""
    x, y = load_digits(return_X_y=True)
    order = np.argsort(y[:500] == 8, kind="stable")  # the last ten are all eights: unlike the rest
    inputs = torch.tensor(x[:500][order] / 16, dtype=torch.float32)
    target = torch.tensor(y[:500][order])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    train(model, F.cross_entropy, inputs, target, 30)

    truth = torch.linalg.eigvalsh(dense_hessian(model, F.cross_entropy, inputs, target))
    loader = DataLoader(TensorDataset(inputs, target), batch_size=490)
    assert [len(batch[1]) for batch in loader] == [490, 10]
    problem = ls.Problem(model, nn.CrossEntropyLoss(), loader)
    # float32 products: 1e-6 of the largest eigenvalue, and the tolerance
    assert top_eigenvalue(problem) == pytest.approx(truth[-1].item(), rel=1e-5)
    assert ls.trace(ls.Hessian(problem), probes=4).value == pytest.approx(
        ls.trace(ls.Hessian(ls.Problem(model, "cross_entropy", (inputs, target))), probes=4).value,
        rel=1e-5,
    )
    parts = [dense_hessian(model, F.cross_entropy, *batch) for batch in loader]
    unweighted = torch.linalg.eigvalsh((parts[0] + parts[1]) / 2)[-1]
    assert abs(unweighted / truth[-1] - 1) > 0.1  # the mistake would show


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignore_index_leaves_ignored_targets_out_of_the_mean(reduction: str) -> None:
    """curvlinops weighs batches by examples, kept or ignored: 54 % off."""
    model, inputs, target = small_net()
    target = target.clone()
    target[:70] = -100  # the first batch keeps none, the second almost none
    hessian = dense_hessian(model, F.cross_entropy, inputs[70:], target[70:])
    loss = nn.CrossEntropyLoss(ignore_index=-100, reduction=reduction)
    problem = ls.Problem(model, loss, (inputs, target), batch_size=40, dtype=torch.float64)
    assert problem.terms == 80
    found = ls.Hessian(problem).dense()
    assert (found - hessian).abs().max() <= 1e-12 * hessian.abs().max()


def test_generators_are_refused_instead_of_giving_zero() -> None:
    """curvlinops reads a generator once and then multiplies by exactly nothing."""
    model, inputs, target = small_net()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(inputs.split(64), target.split(64), strict=True)

    for one_shot in (batches(), iter(list(batches())), map(tuple, list(batches()))):
        with pytest.raises(
            ls.InputError, match="one-shot .*pass a list of batches or a DataLoader"
        ):
            ls.Problem(model, "cross_entropy", one_shot)
    problem = ls.Problem(model, "cross_entropy", list(batches()))
    assert top_eigenvalue(problem) == pytest.approx(
        torch.linalg.eigvalsh(small_net_hessian())[-1].item(), rel=1e-5
    )


@pytest.mark.parametrize("factor", [1e-6, 2.0**-20])
def test_loss_scale_of_1e_minus_6_scales_every_number(factor: float) -> None:
    """PyHessian divides by ‖v‖ + 1e-6: its top Ritz value is then 0.29 times the true one."""
    model, inputs, target = small_net()

    def scaled(output: Tensor, labels: Tensor) -> Tensor:
        return factor * F.cross_entropy(output, labels)

    truth = torch.linalg.eigvalsh(small_net_hessian())
    plain, small = (ls.Problem(model, loss, (inputs, target)) for loss in ("cross_entropy", scaled))
    assert top_eigenvalue(small) == pytest.approx(factor * truth[-1].item(), rel=1e-5)
    whole, tiny = (ls.spectrum(p, top=3, probes=4, steps=30) for p in (plain, small))
    for a, b in zip(whole.eigenvalues, tiny.eigenvalues, strict=True):
        assert b.value == pytest.approx(factor * a.value, rel=1e-4)
        assert b.converged
    assert tiny.smallest_eigenvalue.value == pytest.approx(
        factor * whole.smallest_eigenvalue.value, rel=1e-3
    )
    assert tiny.trace.value == pytest.approx(factor * whole.trace.value, rel=1e-4)
    for one, other in zip(whole.ritz, tiny.ritz, strict=True):
        assert other.nodes[-1] == pytest.approx(factor * one.nodes[-1], rel=1e-4)
    assert tiny.density.width == pytest.approx(factor * whole.density.width, rel=1e-4)
    assert np.trapezoid(tiny.density.values, tiny.density.grid) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ghost_eigenvalues_are_not_returned_as_eigenpairs(dtype: torch.dtype) -> None:
    """hessian-eigenthings returned the top value 16 times and the second 11 times."""
    spectrum = np.r_[100.0, 50.0, np.linspace(0, 1, 198)]
    A = ls.as_operator(with_spectrum(spectrum), dtype=dtype)
    pairs = ls.eigenpairs(A, 40, tolerance=1e-6, max_steps=150)
    values = pairs.values.double().sort(descending=True).values
    assert torch.allclose(values[:2], torch.tensor([100.0, 50.0], dtype=torch.float64), rtol=1e-5)
    assert values[2] <= 1 + 1e-4
    # And in a spectrum they do not double the eigenvalue's weight.
    density = ls.spectral_density(A, probes=200, steps=60)
    nodes, weights = (np.concatenate([m[i] for m in density.ritz]) for i in (0, 1))
    share = weights[abs(nodes - 100) < 0.01].sum() / 200
    # squared projections: relative scatter √2 per probe
    assert share == pytest.approx(1 / 200, rel=4 * math.sqrt(2 / 200))


def test_trace_stop_rule_is_the_standard_error() -> None:
    """PyHessian stops when the mean stops moving: 14 % off at the median for a tolerance of 0.1 %."""
    hessian = small_net_hessian()
    A, truth = ls.as_operator(hessian), hessian.trace().item()
    errors, tolerance = [], 0.03
    for seed in range(40):
        found = ls.trace(A, tolerance=tolerance, seed=seed)
        assert found.converged
        assert found.standard_error <= tolerance * abs(found.value)
        errors.append(found.value / truth - 1)
    assert np.median(np.abs(errors)) <= tolerance
    assert np.quantile(np.abs(errors), 0.9) <= 2 * tolerance
    assert abs(ls.trace(-1.0 * A, tolerance=tolerance).value / truth + 1) <= 4 * tolerance


def test_second_object_on_the_same_model_sees_the_same_hessian() -> None:
    """PyHessian leaves its graph in .grad: a second object returns twice the eigenvalues."""
    model, inputs, target = copy.deepcopy(small_net())
    model(inputs).sum().backward()  # a gradient of the user's own
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert before
    truth = torch.linalg.eigvalsh(small_net_hessian())[-1].item()
    first = ls.Problem(model, "cross_entropy", (inputs, target))
    second = ls.Problem(model, "cross_entropy", (inputs, target))
    values = [top_eigenvalue(p) for p in (first, second, first)]
    assert values[0] == values[1] == values[2] == pytest.approx(truth, rel=1e-5)
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, before[name])


def test_unused_parameter_has_zero_curvature_and_is_named() -> None:
    """PyHessian dies of an AssertionError, or of 'float' object has no attribute."""
    model, inputs, target = copy.deepcopy(small_net())
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    problem = ls.Problem(model, "cross_entropy", (inputs, target))
    assert problem.unused() == ["spare"]
    found = ls.Hessian(problem).dense().double()
    spare = list(dict(model.named_parameters())).index("spare")
    start = sum(p.numel() for p in list(model.parameters())[:spare])
    used = torch.tensor([i for i in range(len(found)) if not start <= i < start + 3])
    assert not found[start : start + 3].any()
    assert not found[:, start : start + 3].any()
    assert (found[used][:, used] - small_net_hessian()).abs().max() <= 1e-5
    result = ls.spectrum(problem, top=3, probes=3, steps=20)
    truth = torch.linalg.eigvalsh(small_net_hessian()).flip(0)[:3]
    assert [pair.value for pair in result.eigenvalues] == pytest.approx(truth.tolist(), abs=3e-4)
    assert result.provenance["problem"]["unused_parameters"] == ["spare"]


class Attention(nn.Module):
    """One attention head and a mean over positions; `fused` calls the kernel, else the formula."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.head = nn.Linear(4, 3)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries(x), self.keys(x), self.values(x)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            mixed = (q @ k.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v
        return self.head(mixed.mean(1))


def test_fused_attention_runs_through_a_kernel_with_second_derivatives() -> None:
    torch.manual_seed(0)
    inputs, target = torch.randn(12, 5, 4), torch.randint(0, 3, (12,))
    fused, plain = Attention(True), Attention(False)
    plain.load_state_dict(fused.state_dict())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # what others run into
        loss = F.cross_entropy(fused(inputs), target)
        (gradient,) = torch.autograd.grad(loss, [fused.values.weight], create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative.*not implemented"):
        torch.autograd.grad(gradient.sum(), [fused.queries.weight])
    truth = dense_hessian(plain, F.cross_entropy, inputs, target)
    problem = ls.Problem(fused, "cross_entropy", (inputs, target), dtype=torch.float64)
    assert (ls.Hessian(problem).dense() - truth).abs().max() <= 1e-12


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_transformer_encoder_layer_needs_no_context_manager(mode: bool) -> None:
    """Its fused fast path in evaluation mode has no derivative at all."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).train(mode)
    inputs, target = torch.randn(10, 3, 4), torch.randint(0, 3, (10,))
    problem = ls.Problem(
        model, "cross_entropy", (inputs, target), dtype=torch.float64, batch_size=4
    )
    found = ls.Hessian(problem).dense()
    assert all(module.training == mode for module in model.modules())
    # Truth: no dropout, and the slow path, which training mode always takes.
    still = copy.deepcopy(model).double().train()
    for module in still.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    with sdpa_kernel(SDPBackend.MATH):
        truth = dense_hessian(still, F.cross_entropy, inputs, target)
    assert truth.abs().max() > 0.1
    assert (found - truth).abs().max() <= 1e-12


def test_top_eigenvalue_agrees_with_pyhessian_where_pyhessian_is_right() -> None:
    """One batch, one object, a mean loss of ordinary size, every parameter used."""
    pyhessian = pytest.importorskip("pyhessian")
    model, inputs, target = small_net()
    torch.manual_seed(0)
    theirs = pyhessian.hessian(
        copy.deepcopy(model), nn.CrossEntropyLoss(), data=(inputs, target), cuda=False
    )
    values, _ = theirs.eigenvalues(maxIter=2000, tol=1e-8, top_n=1)
    problem = ls.Problem(model, nn.CrossEntropyLoss(), (inputs, target))
    # power iteration in float32
    assert top_eigenvalue(problem) == pytest.approx(values[0], rel=1e-4)


def test_zero_operator_and_tiny_rank_do_not_break_the_quadrature() -> None:
    """curvlinops' Lanczos divides by zero on them: NaN, then LinAlgError."""
    for spectrum in (np.zeros(30), SPECTRA["rank deficient"]):
        A = ls.as_operator(with_spectrum(spectrum), dtype=torch.float32)
        result = ls.spectrum(A, top=2, probes=3, steps=25)
        assert np.isfinite(result.density.values).all()
        assert result.eigenvalues[0].value == pytest.approx(spectrum.max(), rel=1e-5, abs=1e-12)
