"""Hessian products of every kind of module against a plain float64 computation, and what is refused."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cases import Call
from leaks import photograph, surroundings
from module_kinds import KINDS, REFUSED, ROWS, Kind, mlp, rows
from oracles import plain_kernels
from torch import Tensor, nn
from torch.func import functional_call

import landscape as ls

DOUBLE = torch.float64
LENGTHS = [3, 2]
VECTORS = 3


def parameters(kind: Kind) -> dict[str, nn.Parameter]:
    named = (kind.twin or kind.model).named_parameters()
    return {name: p for name, p in named if p.requires_grad}


def real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def output(kind: Kind, vector: Tensor) -> Tensor:
    """The model's output on all the data in one batch, at other weights."""
    tensors, position = {}, 0
    for name, p in parameters(kind).items():
        shape = real(p).shape
        part = vector[position : position + shape.numel()].reshape(shape)
        tensors[name] = torch.view_as_complex(part) if p.is_complex() else part
        position += shape.numel()

    def model(*args: Any, **kwargs: Any) -> Any:
        plain = copy.deepcopy(kind.twin or kind.model).double().eval()
        return functional_call(plain, tensors, args, kwargs)

    if kind.apply is not None:
        return kind.apply(Call(model, tensors), kind.inputs)
    inputs = kind.inputs if isinstance(kind.inputs, tuple) else (kind.inputs,)
    return model(**inputs[0]) if isinstance(inputs[0], Mapping) else model(*inputs)


def target(kind: Kind) -> Tensor:
    """Numbers of the shape of the output."""
    with torch.no_grad():
        shape = output(kind, weights(kind)).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def weights(kind: Kind) -> Tensor:
    return torch.cat([real(p).to(DOUBLE).reshape(-1) for p in parameters(kind).values()])


def vectors(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, VECTORS, generator=generator, dtype=DOUBLE)


def hessian_products(kind: Kind, wanted: Tensor) -> Tensor:
    """∇(∇L · v) of the mean squared error, written out.

    Where everything is differentiated it agrees with a difference of gradients, which needs no second
    derivative of any kernel.
    """
    at = weights(kind)
    V = vectors(len(at))

    def gradient(vector: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
        vector = vector.clone().requires_grad_()
        loss = (output(kind, vector) - wanted).square().mean()
        return torch.autograd.grad(loss, vector, create_graph=graph)[0], vector

    with plain_kernels():
        slope, vector = gradient(at, graph=True)
        products = torch.stack(
            [torch.autograd.grad(slope, vector, v, retain_graph=True)[0] for v in V.T], 1
        )
        if not kind.constant:
            step = (
                1e-5  # truncation 1e-10 and rounding 1e-16 / 1e-5, times the bends of the network
            )
            ahead, behind = (gradient(at + s * step * V[:, 0])[0] for s in (1, -1))
            gap = (ahead - behind) / (2 * step) - products[:, 0]
            assert gap.abs().max() <= 1e4 * kind.exact * products.abs().max()
    return products


def cut(thing: Any) -> list[Any]:
    """Ragged batches of nested inputs."""
    if isinstance(thing, Tensor):
        return list(thing.split(LENGTHS))
    if isinstance(thing, Mapping):
        pieces = zip(*map(cut, thing.values()), strict=True)
        return [dict(zip(thing, piece, strict=True)) for piece in pieces]
    return list(zip(*map(cut, thing), strict=True))


def problem(kind: Kind, wanted: Tensor, dtype: torch.dtype | None = None) -> ls.Problem:
    pairs = zip(cut(kind.inputs), wanted.split(LENGTHS), strict=True)
    batches: list[Any]
    if isinstance(kind.inputs, Mapping):
        batches = [{**x, "labels": y} for x, y in pairs]
    elif isinstance(kind.inputs, tuple):
        batches = [(*x, y) for x, y in pairs]
    else:
        batches = list(pairs)
    return ls.Problem(kind.model, "mse", batches, norm_stats=kind.norm_stats, dtype=dtype)


def products(kind: Kind, wanted: Tensor, dtype: torch.dtype, announced: int = 0) -> Tensor:
    asked = problem(kind, wanted, dtype)
    H = ls.Hessian(asked)
    H.expect(announced)
    return (H @ vectors(asked.size).to(dtype)).to(DOUBLE)


@pytest.mark.parametrize("name", KINDS)
def test_products_are_those_of_the_plain_computation_and_nothing_leaks(name, record):
    kind = KINDS[name]()
    wanted = target(kind)
    exact = hessian_products(kind, wanted)
    assert exact.abs().max() > 1e-3  # a curvature worth comparing
    before, around = photograph(kind.model), surroundings()
    errors = [
        float((products(kind, wanted, dtype) - exact).abs().max() / exact.abs().max())
        for dtype in (DOUBLE, torch.float32)
    ]
    assert photograph(kind.model) == before
    assert surroundings() == around
    record(
        "modules", kind=name, engine="double backward",
        error_float64=errors[0], error_float32=errors[1],
    )  # fmt: skip
    assert errors[0] <= kind.exact
    assert errors[1] <= 1e-4  # 1e3 roundings of 1e-7


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_in_a_sentence(name, record):
    build, sentence = REFUSED[name]
    kind = build()
    with pytest.raises(ls.InputError, match=sentence) as caught:
        measured = problem(kind, torch.randn(ROWS, 2, dtype=DOUBLE))
        ls.Hessian(measured) @ torch.ones(measured.size, dtype=measured.dtype)
    assert "\n" not in str(caught.value)
    record("modules", kind=name, engine="double backward", outcome=str(caught.value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_measured_in_float32(dtype, record):
    model = mlp().to(dtype)
    kind = Kind(model, rows(3).to(dtype))
    wanted = target(Kind(copy.deepcopy(model).double(), kind.inputs.double()))
    asked = problem(kind, wanted)
    assert asked.summary()["dtype"] == "float32"
    found = (ls.Hessian(asked) @ vectors(asked.size).float()).double()
    exact = hessian_products(Kind(copy.deepcopy(model).double(), kind.inputs.double()), wanted)
    error = float((found - exact).abs().max() / exact.abs().max())
    name = f"weights of {dtype}".replace("torch.", "")
    record("modules", kind=name, engine="double backward", error_float32=error)
    assert error <= 1e-4
    assert next(model.parameters()).dtype == dtype
    with pytest.raises(ls.InputError, match=rf"dtype is {dtype}: choose torch.float32 or"):
        ls.Problem(model, "mse", (kind.inputs, wanted), dtype=dtype)
