"""Small problems in float64 whose sharpness is known otherwise."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import landscape as ls

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


def relu_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


def problem_of(model: nn.Module) -> ls.Problem:
    return ls.Problem(model, "cross_entropy", data(30), batch_size=16)


def trained(
    build: Any = torch.optim.Adam, split: bool = False, named: bool = False, **options: Any
) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model, (x, y) = relu_net(), data(30)
    parameters: Any = list(model.named_parameters() if named else model.parameters())
    if split:  # as demos do: matrices first
        parameters = [
            {"params": [p for p in parameters if p.ndim > 1], "eps": 1e-6},
            {
                "params": [p for p in parameters if p.ndim == 1],
                "betas": (0.8, 0.95),
                "amsgrad": False,
            },
        ]
    optimizer = build(parameters, lr=0.02, **options)
    for _ in range(7):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer
