"""Results written over operands: the same numbers, and nobody else's memory."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from landscape.operators.products.reuse import reusing


def viewed(r: Tensor, v: Tensor) -> Tensor:
    a = v * r
    row = a[0]
    b = a + r  # must not be written over a: `row` still needs it
    return b * row


def transposed(r: Tensor, v: Tensor) -> Tensor:
    a = v * r
    return a + a.t()  # written over a it would read what it has written


def handed_on(r: Tensor, v: Tensor) -> Tensor:
    a = v * r
    b = a - r
    view = b.view(-1)[:4]
    c = b * r  # b lives in a's memory by now, and `view` with it
    return c + view.sum()


def merged(r: Tensor, v: Tensor) -> Tensor:
    a = v * 2.0
    b = a + r @ v
    c = b - v * r
    return c - v @ r


def broadcast(r: Tensor, v: Tensor) -> Tensor:
    a = (v * r).sum(0, keepdim=True)
    return v.expand(4, 4) + a * r


def only_inputs(r: Tensor, v: Tensor) -> Tensor:
    return r + v


FUNCTIONS = [viewed, transposed, handed_on, merged, broadcast, only_inputs]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_values_and_inputs_are_those_of_the_plain_graph(function):
    generator = torch.Generator().manual_seed(0)
    r, v = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    before = r.clone(), v.clone()
    graph = make_fx(function, tracing_mode="fake")(r, v)
    found, again = reusing(graph)(r, v), reusing(graph)(r, v)
    torch.testing.assert_close(found, function(*before), rtol=1e-14, atol=1e-14)
    assert torch.equal(found, again)
    assert torch.equal(r, before[0])
    assert torch.equal(v, before[1])


def targets(function):
    graph = make_fx(function, tracing_mode="fake")(torch.ones(4, 4), torch.ones(4, 4))
    return [n.target for n in reusing(graph).graph.nodes if n.op == "call_function"]


def test_sums_of_products_become_one_operation_in_place():
    aten = torch.ops.aten
    assert targets(merged) == [
        aten.mul.Tensor,
        aten.addmm_.default,
        aten.addcmul_.default,
        aten.addmm_.default,
    ]
    assert targets(transposed)[-1] is aten.add.Tensor
