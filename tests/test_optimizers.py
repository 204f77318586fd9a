"""The optimisers: each matches its formulas in float64 step by step, and resumes to the last bit."""

import copy
import gc
import itertools
import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import landscape as ls
from landscape.errors import InputError
from landscape.operators.mfac_dynamic import DynamicMFAC
from landscape.operators.sparse_rows import SparseRows
from landscape.training import MFAC, AdaHessian, SophiaG, SophiaH
from landscape.training.optimizers import adahessian, sophia

DOUBLE = torch.float64
CLASSES = (MFAC, AdaHessian, SophiaH, SophiaG)
SMALL: dict[type, dict[str, Any]] = {
    MFAC: {"lr": 0.05, "window": 4, "damping": 0.1},
    AdaHessian: {"lr": 0.01},
    SophiaH: {"lr": 0.01, "every": 2},
    SophiaG: {"lr": 0.01, "every": 2},
}


def network(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    """59 parameters with a convolution, a bias and a matrix; its Hessian is not diagonal."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 4, 3), nn.Tanh(), nn.Linear(3, 3)
    ).to(dtype)


def batch(step: int, dtype: torch.dtype = DOUBLE, count: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(count, 1, 4, 4, generator=source, dtype=DOUBLE).to(dtype)
    return inputs, torch.randint(3, (count,), generator=source)


def told(optimizer: Any, logits: Tensor, loss: Tensor) -> None:
    """Whatever the optimiser wants to know of the curvature."""
    if isinstance(optimizer, SophiaG):
        optimizer.update_hessian(logits)
    elif not isinstance(optimizer, MFAC):
        optimizer.update_hessian(loss)


def train(model: nn.Module, optimizer: Any, steps: range, schedule: Any = None) -> list[float]:
    dtype = next(model.parameters()).dtype
    losses = []
    for step in steps:
        inputs, targets = batch(step, dtype)
        optimizer.zero_grad()
        logits = model(inputs)
        loss = cross_entropy(logits, targets)
        told(optimizer, logits, loss)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return losses


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def split_groups(model: nn.Module, first: dict[str, Any], rest: dict[str, Any]) -> Any:
    """The convolution's two tensors with some options, the others with other ones."""
    parameters = list(model.parameters())
    return [{"params": parameters[:2], **first}, {"params": parameters[2:], **rest}]


def halved(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)


def rates(base: tuple[float, float], sizes: list[int], step: int) -> Tensor:
    """The learning rate of every number of the flat vector at a step of that schedule."""
    values = [base[0]] * sum(sizes[:2]) + [base[1]] * sum(sizes[2:])
    return torch.tensor(values, dtype=DOUBLE) * 0.5 ** (step // 3)


class Reference:
    """The loss of the network as a function of one flat vector, and its dense derivatives."""

    def __init__(self) -> None:
        self.model = network()
        self.shapes = {name: p.shape for name, p in self.model.named_parameters()}
        self.sizes = [p.numel() for p in self.model.parameters()]
        self.start = flat(self.model.parameters()).clone()

    def loss(self, theta: Tensor, step: int, labels: Tensor | None = None) -> Tensor:
        inputs, targets = batch(step)
        parts = theta.split(self.sizes)
        named = {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
        logits = functional_call(self.model, named, (inputs,))
        return cross_entropy(logits, targets if labels is None else labels)

    def gradient(self, theta: Tensor, step: int, labels: Tensor | None = None) -> Tensor:
        return torch.autograd.functional.jacobian(lambda th: self.loss(th, step, labels), theta)

    def hessian(self, theta: Tensor, step: int) -> Tensor:
        return torch.autograd.functional.hessian(lambda th: self.loss(th, step), theta)

    def per_group(self, first: float, rest: float) -> Tensor:
        counts = sum(self.sizes[:2]), sum(self.sizes[2:])
        return torch.tensor([first] * counts[0] + [rest] * counts[1], dtype=DOUBLE)


def close(model: nn.Module, theta: Tensor) -> bool:
    """To the rounding of float64 in a few steps of curvature with a condition number up to 1e4."""
    return bool((flat(model.parameters()) - theta).norm() < 1e-10 * theta.norm())


# M-FAC


def test_mfac_matches_its_formulas_in_float64_step_by_step() -> None:
    reference, model = Reference(), network()
    groups = split_groups(
        model,
        {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.1},
        {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True},
    )
    optimizer = MFAC(groups, momentum=0.7, window=4, damping=1e-2)
    schedule = halved(optimizer)
    coupled, shrink = reference.per_group(0.1, 0), reference.per_group(0, 0.2)
    momentum = reference.per_group(0, 0.7)
    theta, velocity = reference.start, torch.zeros_like(reference.start)
    window: list[Tensor] = []
    for step in range(9):
        train(model, optimizer, range(step, step + 1), schedule)
        gradient = reference.gradient(theta, step) + coupled * theta
        window = [*window, gradient][-4:]
        rows = torch.stack(window)
        fisher = 1e-2 * torch.eye(len(theta), dtype=DOUBLE) + rows.T @ rows / len(window)
        direction = torch.linalg.solve(fisher, gradient)
        velocity = momentum * velocity + (1 - momentum) * direction
        lr = rates((0.3, 0.1), reference.sizes, step)
        theta = theta * (1 - lr * shrink) - lr * velocity
        assert close(model, theta)


def pushed(optimizer: MFAC, parameter: Tensor, gradients: Tensor) -> list[Tensor]:
    """The directions of a sequence of gradients: lr 1, no momentum, a parameter that starts at zero."""
    found = []
    for gradient in gradients:
        parameter.data.zero_()
        parameter.grad = gradient.to(parameter).view_as(parameter)
        optimizer.step()
        found.append(-parameter.detach().flatten().clone())
    return found


def test_the_first_step_divides_by_the_one_gradient_seen() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=DOUBLE))
    gradient = torch.tensor([[1.0, 2, 2]], dtype=DOUBLE)
    optimizer = MFAC([parameter], 1.0, momentum=0, window=100, damping=0.5)
    # F = λI + ggᵀ, so F⁻¹g = g/(λ + ‖g‖²).
    (direction,) = pushed(optimizer, parameter, gradient)
    assert torch.allclose(direction, gradient[0] / 9.5, rtol=1e-14)


@pytest.mark.parametrize("damping", [1e-3, 1e-7])
def test_mfac_loses_no_digits_in_float32(damping: float) -> None:
    gradients = torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.zeros(500))
    optimizer = MFAC([parameter], 1.0, momentum=0, window=32, damping=damping)
    direction = pushed(optimizer, parameter, gradients)[-1]
    rows = gradients[-32:].double()
    # The solution in the span, by QR in place of a Gram matrix: with Gᵀ = QR, F = λI + QRRᵀQᵀ/32.
    basis, upper = torch.linalg.qr(rows.T)
    inside = damping * torch.eye(32, dtype=DOUBLE) + upper @ upper.T / 32
    expected = basis @ torch.linalg.solve(inside, upper[:, -1])
    # Of float32, 6e-8, as only the stored direction is rounded; the textbook form has an error of 1 here.
    assert (direction - expected).norm() < 2e-7 * expected.norm()


@pytest.mark.parametrize("damping", [1e-7, 1e-10])
def test_repeated_gradients_cost_mfac_as_many_digits_as_it_says(damping: float) -> None:
    gradient = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    parameter = nn.Parameter(torch.zeros(500, dtype=DOUBLE))
    optimizer = MFAC([parameter], 1.0, momentum=0, window=32, damping=damping)
    direction = pushed(optimizer, parameter, gradient.expand(20, 500))[-1]
    square = float(gradient.square().sum())
    expected = gradient / (damping + square)
    assert (direction - expected).norm() < 2.2e-16 * square / damping * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mfac_agrees_with_the_window_of_the_operators(dtype: torch.dtype) -> None:
    gradients = torch.randn(9, 60, generator=torch.Generator().manual_seed(1))
    parameter = nn.Parameter(torch.zeros(6, 10))
    optimizer = MFAC([parameter], 1.0, momentum=0, window=5, damping=0.01, window_dtype=dtype)
    window = DynamicMFAC(60, 5, 0.01, dtype=dtype)
    for direction, gradient in zip(pushed(optimizer, parameter, gradients), gradients, strict=True):
        window.push(gradient)
        assert torch.allclose(direction, window.newest(), rtol=1e-5, atol=1e-5)
    assert optimizer.state[parameter]["rows"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_rows_agree_with_those_of_the_operators_and_lose_nothing_for_good(
    dtype: torch.dtype,
) -> None:
    gradients = torch.randn(9, 60, generator=torch.Generator().manual_seed(2))
    parameter = nn.Parameter(torch.zeros(60))
    options = {"window": 9, "damping": 0.01, "density": 0.1, "window_dtype": dtype}
    optimizer = MFAC([parameter], 1.0, momentum=0, **options)
    window = DynamicMFAC(60, 9, 0.01, rows=SparseRows(9, 60, share=0.1))
    for direction, gradient in zip(pushed(optimizer, parameter, gradients), gradients, strict=True):
        window.push(gradient)
        if dtype == torch.float32:
            assert torch.allclose(direction, window.newest(), rtol=1e-5, atol=1e-5)
    state = optimizer.state[parameter]
    assert state["values"].shape == (9, 6)
    stored = torch.zeros(60).index_add(
        0, state["places"].flatten(), state["values"].float().flatten()
    )
    assert torch.allclose(stored + state["error"], gradients.sum(0), atol=1e-5)


def test_a_sparse_window_keeps_one_number_of_few_and_none_of_none() -> None:
    none, few = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(4))
    optimizer = MFAC([none, few], density=0.01)
    (few.sum() + none.sum()).backward()
    optimizer.step()
    assert (few < 1).sum() == 1


def test_a_missing_gradient_counts_as_zero_and_moves_nothing() -> None:
    source = torch.Generator().manual_seed(3)
    gradients = torch.randn(5, 8, generator=source, dtype=DOUBLE)
    gradients[3, 5:] = 0  # in the place of the gradient before the last
    one, two, frozen = (nn.Parameter(torch.zeros(n, dtype=DOUBLE)) for n in (5, 3, 2))
    frozen.requires_grad_(False)
    optimizer = MFAC([one, two, frozen], 1.0, momentum=0, window=2, damping=0.1)
    window = DynamicMFAC(8, 2, 0.1, dtype=DOUBLE)
    for step, gradient in enumerate(gradients):
        one.data.zero_(), two.data.zero_()
        one.grad, two.grad = gradient[:5].clone(), None if step == 3 else gradient[5:].clone()
        optimizer.step()
        window.push(gradient)
        expected = -window.newest()
        expected[5:] *= step != 3
        assert torch.allclose(flat([one, two]), expected, rtol=1e-10)
    assert frozen not in optimizer.state
    assert not frozen.any()


def test_parameters_may_join_later() -> None:
    one, two = (nn.Parameter(torch.zeros(n, dtype=DOUBLE)) for n in (5, 3))
    optimizer = MFAC([one], 1.0, momentum=0, window=3, damping=0.1)
    window = DynamicMFAC(8, 3, 0.1, dtype=DOUBLE)
    gradients = torch.randn(4, 8, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    gradients[:2, 5:] = 0
    for step, gradient in enumerate(gradients):
        if step == 2:
            optimizer.add_param_group({"params": [two]})
        one.data.zero_(), two.data.zero_()
        one.grad, two.grad = gradient[:5].clone(), gradient[5:].clone()
        optimizer.step()
        window.push(gradient)
    assert torch.allclose(flat([one, two]), -window.newest(), rtol=1e-10)


def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    model = network()
    optimizer = MFAC(model.parameters(), window=4, damping=0.1)
    train(model, optimizer, range(3))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    next(model.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"not finite.*no step was taken.*GradScaler"):
        optimizer.step()
    assert same(before, (model.state_dict(), optimizer.state_dict()))


def test_a_damping_below_rounding_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(4, dtype=DOUBLE))
    optimizer = MFAC([parameter], window=4, damping=1e-30)
    with pytest.raises(InputError, match="damping 1e-30 is lost beside gradients of size 2"):
        pushed(optimizer, parameter, torch.ones(2, 4, dtype=DOUBLE))


# AdaHessian


def fixed_draws(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, draws: Tensor) -> None:
    """Draw the given flat vectors, one per step, in place of random ones."""
    numbers = iter(draws.flatten())

    def draw(parameter: Tensor, source: torch.Generator) -> Tensor:
        return torch.stack([next(numbers) for _ in range(parameter.numel())]).view_as(parameter)

    monkeypatch.setattr(module, name, draw)


def test_adahessian_matches_its_formulas_in_float64_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference, model = Reference(), network()
    signs = torch.randint(0, 2, (8, len(reference.start)), generator=torch.Generator()) * 2.0 - 1
    signs = signs.to(DOUBLE)
    fixed_draws(monkeypatch, adahessian, "rademacher", signs)
    groups = split_groups(
        model,
        {"lr": 0.02, "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.5, 0.9), "hessian_power": 0.5, "eps": 1e-2},
    )
    optimizer = AdaHessian(groups, betas=(0.8, 0.95), eps=1e-3)
    schedule = halved(optimizer)
    first, second = reference.per_group(0.8, 0.5), reference.per_group(0.95, 0.9)
    power, eps = reference.per_group(1, 0.5), reference.per_group(1e-3, 1e-2)
    decay = reference.per_group(0.1, 0)
    theta = reference.start
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(8):
        train(model, optimizer, range(step, step + 1), schedule)
        gradient = reference.gradient(theta, step)
        size = (reference.hessian(theta, step) @ signs[step]).abs()
        kernels = size[:18].view(2, 9)  # the weights of the convolution come first
        size[:18] = kernels.mean(1, keepdim=True).expand(2, 9).flatten()
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * size**2
        t = step + 1
        scale = (square / (1 - second**t)).sqrt() ** power + eps
        lr = rates((0.02, 0.01), reference.sizes, step)
        theta = theta - lr * (mean / (1 - first**t) / scale + decay * theta)
        assert close(model, theta)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("average", [True, False])
def test_adahessian_averages_over_the_positions_of_a_kernel_and_no_more(
    average: bool, shape: tuple[int, ...]
) -> None:
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    parameter = nn.Parameter(torch.ones(shape, dtype=DOUBLE))
    optimizer = AdaHessian([parameter], betas=(0.9, 0.75), block_average=average)
    loss = (weights * parameter.square()).sum() / 2  # |Hz| is the weights, whatever the signs
    optimizer.update_hessian(loss)
    loss.backward()
    optimizer.step()
    if average and len(shape) > 2:
        weights = weights.mean(tuple(range(2, len(shape))), keepdim=True).expand(shape)
    square = optimizer.state[parameter]["square"]
    assert torch.allclose(4 * square, weights.square(), rtol=1e-14)


def quadratic(parameter: Tensor) -> Tensor:
    matrix = torch.tensor([[1.0, 2], [2, 1]], dtype=DOUBLE)
    return parameter @ matrix @ parameter / 2


def test_adahessian_squares_to_row_norms_and_sophia_averages_to_the_diagonal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    squares, products, sizes = [], [], []
    for signs in itertools.product((-1.0, 1.0), repeat=2):
        drawn = torch.tensor(signs, dtype=DOUBLE)
        fixed_draws(monkeypatch, adahessian, "rademacher", drawn)
        fixed_draws(monkeypatch, sophia, "gaussian", drawn)
        for kind in (AdaHessian, SophiaH):
            parameter = nn.Parameter(torch.ones(2, dtype=DOUBLE))
            optimizer = kind([parameter], betas=(0.9, 0.75))
            loss = quadratic(parameter)
            optimizer.update_hessian(loss)
            loss.backward()
            optimizer.step()
            state = optimizer.state[parameter]
            if kind is AdaHessian:
                squares.append(4 * state["square"])
                sizes.append(squares[-1].sqrt())
            else:
                products.append(4 * state["hessian"])
    # The mean over all four sign vectors is the expectation, exactly.
    assert torch.stack(squares).mean(0).tolist() == [5, 5]  # Σⱼ Hᵢⱼ²
    assert torch.stack(products).mean(0).tolist() == [1, 1]  # Hᵢᵢ
    assert torch.stack(sizes).mean(0).tolist() == [2, 2]


def test_the_draws_are_what_they_are_called_and_new_at_every_step() -> None:
    parameter = nn.Parameter(torch.ones(20_000))
    drawn = {}
    for kind in (AdaHessian, SophiaH):
        optimizer = kind([parameter], every=1, seed=5)
        for step in range(2):
            optimizer.zero_grad()
            loss = parameter.square().sum() / 2  # H = I, so that z⊙Hz = z²
            optimizer.update_hessian(loss)
            squares = optimizer.state[parameter]["collected"].clone()
            loss.backward()
            optimizer.step()
            drawn[kind, step] = squares
    assert all(torch.equal(drawn[AdaHessian, s], torch.ones(20_000)) for s in range(2))
    for step in range(2):
        squares = drawn[SophiaH, step]
        # E[z²] = 1 with variance 2, E[z⁴] = 3 with variance 96: five standard errors.
        assert abs(squares.mean() - 1) < 5 * (2 / 20_000) ** 0.5
        assert abs(squares.square().mean() - 3) < 5 * (96 / 20_000) ** 0.5
    assert not torch.equal(drawn[SophiaH, 0], drawn[SophiaH, 1])
    other = SophiaH([parameter], seed=6)
    other.update_hessian(parameter.square().sum() / 2)
    assert not torch.equal(drawn[SophiaH, 0], other.state[parameter]["collected"])
    signs = adahessian.rademacher(parameter, torch.Generator().manual_seed(0))
    assert signs.abs().eq(1).all()
    assert abs(signs.mean()) < 5 / 20_000**0.5


def test_without_a_new_product_adahessian_keeps_the_old_ones() -> None:
    parameter = nn.Parameter(torch.tensor([1.0], dtype=DOUBLE))
    optimizer = AdaHessian([parameter], lr=0.1, betas=(0.9, 0.8), eps=0.5, every=3)
    theta, mean = 1.0, 0.0
    for step in range(5):
        assert optimizer.hessian_due == (step in (0, 3))
        optimizer.zero_grad()
        loss = 2 * parameter.square().sum()
        optimizer.update_hessian(loss)
        loss.backward()
        optimizer.step()
        # |Hz| = 4 in every product, so that corrected for the products made, √s is 4.
        mean = 0.9 * mean + 0.1 * 4 * theta
        theta -= 0.1 * mean / (1 - 0.9 ** (step + 1)) / 4.5
        assert parameter.item() == pytest.approx(theta, rel=1e-12)


def test_a_linear_loss_has_no_curvature() -> None:
    parameter, other = (nn.Parameter(torch.ones(2, dtype=DOUBLE)) for _ in range(2))
    optimizer = AdaHessian([parameter, other], lr=0.1, eps=0.5)
    loss = 3 * parameter.sum() + other.square().sum() / 2
    optimizer.update_hessian(loss)
    loss.backward()
    optimizer.step()
    assert parameter.tolist() == pytest.approx([1 - 0.1 * 3 / 0.5] * 2, rel=1e-12)
    assert other.tolist() == pytest.approx([1 - 0.1 * 1 / 1.5] * 2, rel=1e-12)


def test_processes_that_average_what_they_find_have_found_it_of_the_whole() -> None:
    found = []
    for kind, parts in itertools.product(
        (AdaHessian, SophiaH), ([slice(0, 6)], [slice(0, 3), slice(3, 6)])
    ):
        of_parts = []
        for rows in parts:  # each a process of its own
            model = network()
            optimizer = kind(model.parameters())
            inputs, targets = (part[rows] for part in batch(0))
            optimizer.update_hessian(cross_entropy(model(inputs), targets))
            of_parts.append(flat(optimizer.state[p]["collected"] for p in model.parameters()))
        found.append(torch.stack(of_parts).mean(0))
    assert torch.allclose(found[0], found[1], atol=1e-14)
    assert torch.allclose(found[2], found[3], atol=1e-14)


def test_a_layer_without_second_derivatives_is_said_with_what_to_do() -> None:
    queries = nn.Parameter(torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0)))
    optimizer = AdaHessian([queries])
    attention = nn.functional.scaled_dot_product_attention
    with pytest.raises(InputError, match=r"without second derivatives.*SDPBackend\.MATH"):
        optimizer.update_hessian(attention(queries, queries, queries).square().mean())
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        loss = attention(queries, queries, queries).square().mean()
    optimizer.update_hessian(loss)
    assert optimizer.state[queries]["collected"].any()


# Sophia


@pytest.mark.parametrize("kind", [SophiaH, SophiaG])
def test_sophia_matches_its_formulas_in_float64_step_by_step(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, model = Reference(), network()
    source = torch.Generator().manual_seed(6)
    normal = torch.randn(3, len(reference.start), generator=source, dtype=DOUBLE)
    labels = torch.randint(3, (3, 6), generator=source)
    fixed_draws(monkeypatch, sophia, "gaussian", normal)
    drawn = iter(labels)
    monkeypatch.setattr(sophia, "sampled_labels", lambda logits, source: next(drawn))
    groups = split_groups(
        model, {"lr": 0.02, "weight_decay": 0.5, "rho": 20}, {"lr": 0.01, "betas": (0.5, 0.9)}
    )
    optimizer = kind(groups, betas=(0.8, 0.6), rho=5, weight_decay=0.1, every=3)
    schedule = halved(optimizer)
    first, second = reference.per_group(0.8, 0.5), reference.per_group(0.6, 0.9)
    rho, decay = reference.per_group(20, 5), reference.per_group(0.5, 0.1)
    theta = reference.start
    mean, diagonal = torch.zeros_like(theta), torch.zeros_like(theta)
    shares = []
    for step in range(9):
        train(model, optimizer, range(step, step + 1), schedule)
        if step % 3 == 0:
            if kind is SophiaH:
                z = normal[step // 3]
                estimate = z * (reference.hessian(theta, step) @ z)
            else:
                estimate = 6 * reference.gradient(theta, step, labels[step // 3]) ** 2
            diagonal = second * diagonal + (1 - second) * estimate
        mean = first * mean + (1 - first) * reference.gradient(theta, step)
        ratio = mean / (rho * diagonal).clamp(min=1e-12)
        lr = rates((0.02, 0.01), reference.sizes, step)
        theta = theta * (1 - lr * decay) - lr * ratio.clamp(-1, 1)
        assert close(model, theta)
        shares.append(float((ratio.abs() < 1).double().mean()))
        assert optimizer.win_rate == pytest.approx(shares[-1])
    assert 0.05 < sum(shares) / 9 < 0.95  # both branches of the clip were seen


def test_the_gauss_newton_bartlett_estimate_is_unbiased_on_the_logistic_example(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    estimates = []
    for drawn in itertools.product((0, 1), repeat=2):  # each with probability 1/4
        monkeypatch.setattr(sophia, "sampled_labels", lambda *_, drawn=drawn: torch.tensor(drawn))
        weight = nn.Parameter(torch.zeros(1, dtype=DOUBLE))
        optimizer = SophiaG([weight], betas=(0.9, 0.5))
        logits = torch.stack([weight * 0, weight], 1) * torch.tensor([[1.0], [2.0]])
        optimizer.update_hessian(logits)
        cross_entropy(logits, torch.tensor([0, 1])).backward()
        optimizer.step()
        estimates.append(float(2 * optimizer.state[weight]["hessian"]))
    # Mean of p(1 − p)x² over x = 1, 2 at p = 1/2: the diagonal of the Gauss–Newton matrix.
    assert sum(estimates) / 4 == pytest.approx(0.625, rel=1e-14)


def test_labels_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0]).expand(40_000, 4)
    labels = sophia.sampled_labels(logits, torch.Generator().manual_seed(0))
    shares = labels.bincount(minlength=4) / 40_000
    expected = logits[0].softmax(0)
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / 40_000).sqrt()).all()


def test_labels_are_drawn_in_float32_and_anew_for_every_part_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[torch.dtype, Tensor]] = []
    true = sophia.sampled_labels

    def drawn(logits: Tensor, source: torch.Generator) -> Tensor:
        seen.append((logits.dtype, true(logits, source)))
        return seen[-1][1]

    monkeypatch.setattr(sophia, "sampled_labels", drawn)
    parameter = nn.Parameter(torch.zeros(100, 3, dtype=torch.bfloat16))
    optimizer = SophiaG([parameter])
    for _ in range(2):
        optimizer.update_hessian(parameter * 1)
    assert [dtype for dtype, _ in seen] == [torch.float32] * 2
    assert not torch.equal(seen[0][1], seen[1][1])


def test_the_samples_of_a_sequence_model_are_its_tokens() -> None:
    found = []
    for shape in ((6, 3), (2, 3, 3)):
        parameter = nn.Parameter(torch.arange(18, dtype=DOUBLE).sin())
        optimizer = SophiaG([parameter])
        optimizer.update_hessian(parameter.view(shape))
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        found.append(optimizer.state[parameter]["hessian"])
    assert torch.equal(*found)


def test_negative_curvature_gives_the_sign_of_the_momentum() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=DOUBLE))
    optimizer = SophiaH([parameter], lr=0.1, weight_decay=0)
    loss = -parameter.square().sum() / 2
    optimizer.update_hessian(loss)
    loss.backward()
    optimizer.step()
    assert parameter.tolist() == pytest.approx([1.1, -2.1])
    assert optimizer.win_rate == 0


# What all of them owe to a torch.optim.Optimizer


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


VARIANTS = [
    *((kind, {}) for kind in CLASSES),
    (MFAC, {"window_dtype": torch.bfloat16}),
    (MFAC, {"density": 0.2}),
]


@pytest.mark.parametrize(("kind", "extra"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_resumes_to_the_last_bit(
    kind: type, extra: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    def begun(**options: Any) -> tuple[nn.Module, Any, Any]:
        model = network(dtype)
        optimizer = kind(split_groups(model, {"lr": 0.02}, {"weight_decay": 0.01}), **options)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=12)
        return model, optimizer, cycle

    options = SMALL[kind] | extra
    whole = begun(**options)
    train(whole[0], whole[1], range(11), whole[2])

    first = begun(**options)
    train(first[0], first[1], range(5), first[2])
    torch.save([part.state_dict() for part in first], tmp_path / "run.pt")
    # All options are in the state: those given here are of no account.
    others = {"window": 4} if kind is MFAC else {"seed": 9, "every": 7}
    second = begun(**others)
    for part, saved in zip(second, torch.load(tmp_path / "run.pt"), strict=True):
        part.load_state_dict(saved)
    train(second[0], second[1], range(5, 11), second[2])
    assert same(whole[0].state_dict(), second[0].state_dict())
    assert same(whole[1].state_dict(), second[1].state_dict())


@pytest.mark.parametrize("kind", CLASSES)
def test_a_loaded_state_is_a_copy_and_so_is_that_of_a_deep_copy(kind: type) -> None:
    model = network()
    optimizer = kind(model.parameters(), **SMALL[kind])
    train(model, optimizer, range(3))
    kept = copy.deepcopy(optimizer.state_dict())
    other = network()
    loaded = kind(other.parameters(), **SMALL[kind])
    loaded.load_state_dict(optimizer.state_dict())
    train(other, loaded, range(3, 6))
    clone, cloned = copy.deepcopy((model, optimizer))
    train(clone, cloned, range(3, 6))
    assert same(kept, optimizer.state_dict())
    assert not same(kept, cloned.state_dict())


@pytest.mark.parametrize("kind", CLASSES)
def test_averages_over_steps_of_a_half_precision_model_are_in_float32(kind: type) -> None:
    model = network(torch.bfloat16)
    train(model, optimizer := kind(model.parameters(), **SMALL[kind]), range(2))
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert not isinstance(value, Tensor) or value.dtype == torch.float32
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("kind", CLASSES)
def test_gradients_of_parts_add_up_to_a_step_with_the_whole_batch(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sophia, "sampled_labels", lambda logits, source: logits.argmin(1))
    whole, parts = network(), network()
    first, second = (kind(m.parameters(), **SMALL[kind]) for m in (whole, parts))
    for step in range(4):
        train(whole, first, range(step, step + 1))
        inputs, targets = batch(step)
        second.zero_grad()
        for rows in (slice(0, 2), slice(2, 6)):
            logits = parts(inputs[rows])
            loss = cross_entropy(logits, targets[rows]) * len(targets[rows]) / 6
            told(second, logits, loss)
            loss.backward()
        second.step()
    assert close(parts, flat(whole.parameters()))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(kind: type) -> None:
    plain, closed = network(), network()
    optimizer = kind(plain.parameters(), **SMALL[kind])
    losses = train(plain, optimizer, range(3))
    other = kind(closed.parameters(), **SMALL[kind])

    def closure(step: int) -> Tensor:
        inputs, targets = batch(step)
        other.zero_grad()
        logits = closed(inputs)
        loss = cross_entropy(logits, targets)
        told(other, logits, loss)
        loss.backward()
        return loss

    found = [other.step(lambda step=step: closure(step)).item() for step in range(3)]
    assert found == losses
    assert torch.equal(flat(plain.parameters()), flat(closed.parameters()))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_learning_rate_may_be_a_tensor(kind: type) -> None:
    models = network(), network()
    for model, lr in zip(models, (0.25, torch.tensor(0.25, dtype=DOUBLE)), strict=True):
        train(model, kind(model.parameters(), **(SMALL[kind] | {"lr": lr})), range(3))
    assert torch.equal(*(flat(model.parameters()) for model in models))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_gradient_scaler_changes_no_step_and_skips_those_that_overflow(kind: type) -> None:
    plain, scaled = network(torch.float32), network(torch.float32)
    optimizer, other = (kind(m.parameters(), **SMALL[kind]) for m in (plain, scaled))
    # A power of two scales without rounding.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        if step == 2:
            before = copy.deepcopy((scaled.state_dict(), other.state_dict()))
            scaled_step(scaled, other, scaler, 50, spoilt=True)
            other.zero_grad()
            assert same(before, (scaled.state_dict(), other.state_dict()))
            assert scaler.get_scale() == 2.0**9
        train(plain, optimizer, range(step, step + 1))
        scaled_step(scaled, other, scaler, step)
    assert torch.equal(flat(plain.parameters()), flat(scaled.parameters()))


def scaled_step(
    model: nn.Module, optimizer: Any, scaler: Any, step: int, *, spoilt: bool = False
) -> None:
    inputs, targets = batch(step, torch.float32)
    optimizer.zero_grad()
    logits = model(inputs)
    loss = cross_entropy(logits, targets)
    told(optimizer, logits, loss)
    scaler.scale(loss).backward()
    if spoilt:
        next(model.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e6)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_trains_float32_masters(kind: type, half: torch.dtype) -> None:
    model = network(torch.float32)
    optimizer = kind(model.parameters(), **SMALL[kind])
    scaler = torch.amp.GradScaler("cpu", enabled=half == torch.float16)
    inputs, targets = batch(0, torch.float32)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", half):
            logits = model(inputs)
            loss = cross_entropy(logits, targets)
        told(optimizer, logits, loss)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("spoilt", [math.nan, 1e200])  # whose square overflows
@pytest.mark.parametrize("kind", [AdaHessian, SophiaH, SophiaG])
def test_an_estimate_that_is_not_finite_changes_nothing_but_the_count_of_steps(
    kind: type, spoilt: float
) -> None:
    model = network()
    optimizer = kind(model.parameters(), **(SMALL[kind] | {"every": 1}))
    train(model, optimizer, range(2))
    key = "square" if kind is AdaHessian else "hessian"
    before = [optimizer.state[p][key].clone() for p in model.parameters()]
    inputs, targets = batch(2)
    optimizer.zero_grad()
    logits = model(inputs)
    loss = cross_entropy(logits, targets)
    told(optimizer, logits, loss)
    optimizer.state[next(model.parameters())]["collected"].view(-1)[0] = spoilt
    loss.backward()
    optimizer.step()
    assert same(before, [optimizer.state[p][key] for p in model.parameters()])
    assert torch.isfinite(flat(model.parameters())).all()


@pytest.mark.parametrize("kind", CLASSES)
def test_frozen_and_unused_parameters_stay_and_a_step_without_gradients_is_none(kind: type) -> None:
    model = network()
    spare = nn.Parameter(torch.ones(3, dtype=DOUBLE))
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    optimizer = kind([*model.parameters(), spare], **SMALL[kind])
    optimizer.step()
    assert not any("mean" in state or "rows" in state for state in optimizer.state.values())
    train(model, optimizer, range(3))
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(spare, torch.ones(3, dtype=DOUBLE))
    assert not torch.equal(flat(model.parameters()), flat(network().parameters()))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_group_may_be_empty_and_all_may_be_frozen(kind: type) -> None:
    optimizer = kind([{"params": []}], **SMALL[kind])
    optimizer.load_state_dict(optimizer.state_dict())
    model = network().requires_grad_(False)
    optimizer.add_param_group({"params": list(model.parameters())})
    logits = model(batch(0)[0].requires_grad_())
    told(optimizer, logits, cross_entropy(logits, batch(0)[1]))
    optimizer.step()
    assert torch.equal(flat(model.parameters()), flat(network().parameters()))


@pytest.mark.parametrize("kind", [AdaHessian, SophiaH, SophiaG])
def test_estimates_leave_gradients_random_state_and_no_graph(kind: type) -> None:
    model = network()
    optimizer = kind(model.parameters(), **SMALL[kind])
    inputs, targets = batch(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    random = torch.get_rng_state()
    hidden = model[0](inputs)
    alive = weakref.ref(hidden)
    logits = model[1:](hidden)
    loss = cross_entropy(logits, targets)
    told(optimizer, logits, loss)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert not any(
        state["collected"].requires_grad
        for p in model.parameters()
        for state in [optimizer.state[p]]
    )
    gc.disable()
    try:
        del hidden, logits, loss
        assert alive() is None  # without the garbage collector: there is no cycle
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", CLASSES)
def test_every_optimiser_trains_the_digits(kind: type) -> None:
    from landscape.demos.data import load_data
    from landscape.demos.models import mlp

    torch.manual_seed(0)
    model = mlp()
    inputs, targets = (part[:256] for part in load_data("digits:train"))
    optimizer = kind(model.parameters(), **(SMALL[kind] | {"lr": 0.2 if kind is MFAC else 0.02}))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        logits = model(inputs)
        loss = cross_entropy(logits, targets)
        told(optimizer, logits, loss)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


REFUSED: list[tuple[str, Callable[[Any], Any]]] = [
    ("lr is -1: it must be at least 0 and finite", lambda p: MFAC(p, -1)),
    ("momentum is 1: it must be at least 0 and below 1", lambda p: MFAC(p, momentum=1)),
    ("damping is 0: it must be above 0 and finite", lambda p: MFAC(p, damping=0)),
    ("window is 0: keep at least 1", lambda p: MFAC(p, window=0)),
    ("window_dtype is torch.float16: use", lambda p: MFAC(p, window_dtype=torch.float16)),
    ("density is 2: it must be above 0 and at most 1", lambda p: MFAC(p, density=2)),
    ("betas is 0.9: give two numbers", lambda p: SophiaH(p, betas=0.9)),
    ("each of betas is 1.5", lambda p: AdaHessian(p, betas=(0.9, 1.5))),
    ("hessian_power is 2: it must be from 0 to 1", lambda p: AdaHessian(p, hessian_power=2)),
    ("eps is 0: it must be above 0", lambda p: AdaHessian(p, eps=0)),
    ("rho is nan: it must be above 0", lambda p: SophiaH(p, rho=math.nan)),
    ("every is 0: it counts steps", lambda p: SophiaG(p, every=0)),
    ("seed is -1", lambda p: SophiaG(p, seed=-1)),
    ("weight_decay is -1", lambda p: SophiaG([{"params": p, "weight_decay": -1}])),
]


@pytest.mark.parametrize(("sentence", "make"), REFUSED)
def test_options_out_of_range_are_refused(sentence: str, make: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match=sentence):
        make([nn.Parameter(torch.ones(2))])


def test_a_group_that_is_refused_leaves_the_optimiser_as_it_was() -> None:
    optimizer = MFAC([nn.Parameter(torch.ones(2))])
    with pytest.raises(InputError, match="momentum is 2"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "momentum": 2})
    with pytest.raises(InputError, match="not of a real floating-point type"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.cfloat))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", [AdaHessian, SophiaH, SophiaG])
def test_a_forgotten_or_misplaced_update_is_said(kind: type) -> None:
    model = network()
    optimizer = kind(model.parameters())
    inputs, targets = batch(0)
    logits = model(inputs)
    loss = cross_entropy(logits, targets)
    told(optimizer, logits, loss)
    optimizer.zero_grad()  # drops what was found
    loss.backward()
    with pytest.raises(InputError, match="call update_hessian after zero_grad and before step"):
        optimizer.step()
    with pytest.raises(InputError, match=r"call it before loss\.backward\(\)"):
        optimizer.update_hessian(torch.ones(()))


def test_sparse_gradients_and_foreign_states_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = MFAC(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="make it dense, sparse=False in an embedding"):
        optimizer.step()
    adam = torch.optim.Adam(table.parameters())
    with pytest.raises(InputError, match="not that of MFAC: load it into"):
        optimizer.load_state_dict(adam.state_dict())


def test_a_window_of_another_length_comes_with_its_state() -> None:
    model, other = network(), network()
    optimizer = MFAC(model.parameters(), window=3, damping=0.1)
    train(model, optimizer, range(5))
    loaded = MFAC(other.parameters(), window=7)
    loaded.load_state_dict(optimizer.state_dict())
    other.load_state_dict(model.state_dict())
    train(model, optimizer, range(5, 8))
    train(other, loaded, range(5, 8))
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


def test_the_optimisers_are_found_without_loading_torch() -> None:
    code = "import sys, landscape as ls; ls.training; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ls.training.MFAC is MFAC
    assert set(ls.training.__all__) <= set(dir(ls.training))
    with pytest.raises(AttributeError, match="no attribute 'Adam'"):
        ls.training.Adam  # noqa: B018


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CLASSES)
def test_a_run_goes_on_on_a_gpu(kind: type) -> None:
    here, there = network(), network().cuda()
    optimizer = kind(here.parameters(), **SMALL[kind])
    train(here, optimizer, range(3))
    there.load_state_dict(here.state_dict())
    moved = kind(there.parameters(), **SMALL[kind])
    moved.load_state_dict(optimizer.state_dict())
    inputs, targets = (part.cuda() for part in batch(3))
    logits = there(inputs)
    loss = cross_entropy(logits, targets)
    told(moved, logits, loss)
    loss.backward()
    moved.step()
    assert torch.isfinite(flat(there.parameters())).all()


def test_a_state_of_another_class_is_refused_though_its_entries_are_the_same() -> None:
    weight = [torch.nn.Parameter(torch.ones(2))]
    state = ls.training.SophiaH(weight).state_dict()
    with pytest.raises(InputError, match="the state is not that of SophiaG"):
        ls.training.SophiaG(weight).load_state_dict(state)
