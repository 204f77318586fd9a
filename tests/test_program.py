"""Exported programs run from their description alone: the same numbers as torch's own loader gives."""

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from files import net, samples
from module_kinds import KINDS
from torch import Tensor, nn

import landscape as ls
from landscape.loading.program import load_program

QUICK = [
    "nn.MultiheadAttention with key_padding_mask",
    "nn.LSTM",
    "transformers BertForSequenceClassification",
    "mixture of experts with top-k routing",
    "orthogonal parametrisation, cayley",
]


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any
) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, args, kwargs, **options), buffer)
    return buffer.getvalue()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    return [t for part in parts for t in _tensors(part)] if isinstance(parts, (tuple, list)) else []


def _compare(name: str) -> None:
    kind = KINDS[name]()
    inputs = kind.inputs if isinstance(kind.inputs, tuple) else (kind.inputs,)
    mapped = isinstance(inputs[0], Mapping)
    args, kwargs = ((), dict(inputs[0])) if mapped else (inputs, {})
    try:
        content = _exported(kind.model.eval(), args, kwargs)
        expected = _tensors(torch.export.load(io.BytesIO(content)).module()(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 torch cannot export everything
        pytest.skip(f"torch cannot export it: {str(error).splitlines()[0][:80]}")
    module = load_program(content, name).module
    found = _tensors(module(*args, **kwargs))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    names = {n for n, _ in module.named_parameters()}
    assert names <= {n for n, _ in kind.model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("name", QUICK)
def test_a_program_gives_what_torch_gives(name: str) -> None:
    _compare(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name not in QUICK])
def test_every_kind_of_module_gives_what_torch_gives(name: str) -> None:
    _compare(name)


def test_a_program_of_inference_operators_runs() -> None:
    """After decomposition into core operators, as deployment tools write it."""
    buffer = io.BytesIO()
    rows = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(net(), (samples()[0][:2],), dynamic_shapes=rows)
    torch.export.save(exported.run_decompositions(), buffer)
    module = load_program(buffer.getvalue(), "p").module
    x, y = samples()
    torch.testing.assert_close(module(x), net()(x))
    v = torch.randn(sum(p.numel() for p in net().parameters()))
    ours, live = (ls.Hessian(ls.Problem(m, "cross_entropy", (x, y))) for m in (module, net()))
    torch.testing.assert_close(ours @ v, live @ v, rtol=1e-4, atol=1e-5)


class Nested(nn.Module):
    """Dictionaries and lists in and out, a default, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.second.weight = self.first.weight

    def forward(self, parts: dict[str, Tensor], *, scale: Tensor, more: Any = None) -> Any:
        with torch.no_grad():
            shift = parts["b"].mean()
        hidden = [self.first(parts["a"]) * scale, self.second(parts["b"]) + shift]
        return {"hidden": hidden, "sum": (hidden[0] + hidden[1], 3)}


def test_nested_inputs_outputs_tied_weights_and_parts_without_gradients() -> None:
    model = Nested()
    given = ({"a": torch.randn(5, 3), "b": torch.randn(5, 3)},)
    options = {"scale": torch.tensor(2.0)}
    module = load_program(_exported(model, given, options), "p").module
    assert (
        module._modules["first"]._parameters["weight"]
        is (module._modules["second"]._parameters["weight"])
    )
    found, expected = module(*given, **options), model(*given, **options)
    assert list(found) == ["hidden", "sum"] and found["sum"][1] == 3
    torch.testing.assert_close(found["hidden"], expected["hidden"])
    for result, network in ((found, module), (expected, model)):
        network.zero_grad()
        (result["hidden"][0] * result["hidden"][1]).sum().backward()
    torch.testing.assert_close(
        module._modules["first"]._parameters["weight"].grad, model.first.weight.grad
    )
    with pytest.raises(ValueError, match="takes a dictionary of a, b"):
        module({"a": given[0]["a"]}, **options)


def test_an_input_of_another_shape_is_refused_with_both_shapes() -> None:
    x, y = samples()
    rows = ({0: torch.export.Dim.AUTO},)
    module = load_program(_exported(net(), (x[:2],), {}, dynamic_shapes=rows), "p").module
    with pytest.raises(ls.InputError, match=r"of shape \(s\d+, 1, 5, 5\), not \(12, 1, 4, 5\)"):
        ls.Problem(module, "cross_entropy", (x[:, :, 1:], y))


def test_a_program_moves_to_another_type_and_back() -> None:
    x, y = samples()
    module = load_program(_exported(net(), (x,), {}), "p").module
    problem = ls.Problem(module, "cross_entropy", (x, y))
    exact = ls.Hessian(problem.astype(torch.float64))
    live = ls.Hessian(ls.Problem(net().double(), "cross_entropy", (x.double(), y)))
    v = torch.randn(problem.size, dtype=torch.float64)
    torch.testing.assert_close(exact @ v, live @ v, rtol=1e-10, atol=1e-12)
    assert module._modules["head"]._parameters["weight"].dtype == torch.float32
