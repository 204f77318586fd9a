"""Symmetric matrices whose spectrum is known, and a small trained net whose Hessian is."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits, load_iris
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

Array = NDArray[np.float64]


def with_spectrum(eigenvalues: ArrayLike, *, seed: int = 0) -> Tensor:
    """QΛQᵀ in float64, Q uniformly distributed over the orthogonal matrices."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    draws = np.random.default_rng(seed).standard_normal((len(values), len(values)))
    q, r = np.linalg.qr(draws)
    q *= np.sign(np.diag(r))  # without it Q is not uniform (Mezzadri 2007)
    matrix = (q * values) @ q.T
    return torch.from_numpy((matrix + matrix.T) / 2)


def network_like(size: int = 130) -> Array:
    """A bulk that piles up at zero, a few negative values, and nine large outliers."""
    rng = np.random.default_rng(0)
    outliers = np.geomspace(2.0, 20.0, 9)
    negative = -rng.exponential(0.05, size // 10)
    return np.r_[negative, rng.exponential(0.05, size - len(negative) - 9), outliers]


SPECTRA: dict[str, Array] = {
    "gapped": np.r_[20.0, 15.0, 10.0, 8.0, -6.0, -7.5, np.linspace(0, 1, 114)],
    "clustered": np.r_[10.0, 9.95, 9.9, 9.85, np.linspace(4.9, 5.1, 40), -3.0, -2.95, -2.9],
    "few distinct": np.r_[[5.0] * 3, [1.0] * 60, [-2.0] * 4],
    "indefinite": np.linspace(-3.0, 4.0, 90),
    "negative definite": -np.geomspace(0.1, 7.0, 80),
    "rank deficient": np.r_[5.0, 4.0, 3.0, 2.0, 1.0, np.zeros(95)],
    "gap 1e-3": np.r_[1.001, 1.0, np.linspace(-0.5, 0.9, 98)],
    "condition 1e10": np.geomspace(1e-10, 1.0, 100),
    "network": network_like(),
}


def dense_hessian(model: nn.Module, loss: object, *arguments: Tensor) -> Tensor:
    """Hessian (P, P) of `loss(model output, target)` on the whole data, float64, by torch.func.

    Independent of the package: no batches, no weights, no products. `arguments` are inputs, target.
    Reverse over reverse, because `torch.func.hessian` (forward over reverse) is wrong for the scale
    of a LayerNorm in torch 2.13.
    """
    inputs, target = arguments
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    target = target.double() if target.is_floating_point() else target
    parameters = {name: p.detach().double() for name, p in model.named_parameters()}
    buffers = {
        name: b.double() if b.is_floating_point() else b for name, b in model.named_buffers()
    }
    sizes = [p.numel() for p in parameters.values()]

    def value(flat: Tensor) -> Tensor:
        parts = dict(zip(parameters, flat.split(sizes), strict=True))
        shaped = {name: part.view_as(parameters[name]) for name, part in parts.items()}
        return loss(functional_call(model, shaped | buffers, (inputs,)), target)  # type: ignore[operator]

    return jacrev(grad(value))(torch.cat([p.flatten() for p in parameters.values()]))


def train(model: nn.Module, loss: object, inputs: Tensor, target: Tensor, steps: int) -> None:
    """A few full-batch steps of Adam, so that the Hessian is that of a net that has learned."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(inputs), target).backward()  # type: ignore[operator]
        optimizer.step()
    model.zero_grad(set_to_none=True)


@cache
def small_net() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained tanh net with P = 51 in float32, inputs (150, 4) and classes (150,) of the irises."""
    x, y = load_iris(return_X_y=True)
    inputs = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    target = torch.tensor(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    train(model, F.cross_entropy, inputs, target, 40)
    return model, inputs, target


@cache
def small_net_hessian() -> Tensor:
    """The exact Hessian of `small_net`, float64."""
    model, inputs, target = small_net()
    return dense_hessian(model, F.cross_entropy, inputs, target)


@cache
def digits_net() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained tanh net with P = 610 in float32, 400 digits of 8 × 8 pixels and their classes."""
    x, y = load_digits(return_X_y=True)
    inputs = torch.tensor(x[:400] / 16, dtype=torch.float32)
    target = torch.tensor(y[:400])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    train(model, F.cross_entropy, inputs, target, 60)
    return model, inputs, target


@cache
def digits_net_hessian() -> Tensor:
    """The exact Hessian of `digits_net`, float64."""
    model, inputs, target = digits_net()
    return dense_hessian(model, F.cross_entropy, inputs, target)
