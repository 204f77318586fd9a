"""What can be measured at all: models and tensors that are refused, each in a sentence."""

import torch
from torch import Tensor, nn

from landscape import batches, culprits
from landscape.errors import InputError
from landscape.parameters import canonical_device


def device_of(model: nn.Module, wanted: str | torch.device | None) -> torch.device:
    """Where to measure: as asked, or where the model lies.

    Raises:
        InputError: it lies on several devices and none was asked for, or has no values.
    """
    found: dict[str, str] = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(str(value.device), name)
    if wanted is None and len(found) > 1:
        listed = ", ".join(f"{name!r} on {device}" for device, name in found.items())
        raise InputError(f"the model lies on several devices ({listed}): pass device=")
    if "meta" in found:
        raise InputError(
            f"{found['meta']!r} has no values (device 'meta'): load the model's weights first"
        )
    return canonical_device(next(iter(found)) if wanted is None else wanted)


@torch.no_grad()
def require_usable(modules: list[nn.Module], model: nn.Module) -> None:
    """Refuse a model whose weights cannot be replaced or differentiated, or are not finite."""
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{type(model).__name__} is or holds a TorchScript module, whose weights cannot be "
                "replaced for a derivative: build the model from its Python class"
            )
        if ".quantized" in type(module).__module__:
            at = next((n for n, m in model.named_modules() if m is module), "")
            raise InputError(
                f"{culprits.describe(model, at)} is quantised, and whole numbers have no derivative: "
                "measure the model before it is quantised"
            )
    for kind, named in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, value in named:
            if isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                raise InputError(
                    f"{kind} {name!r} has no shape yet: run the lazy model once on a batch first"
                )
            # A buffer may hold −inf on purpose, as causal masks do; NaN is always a mistake.
            if value.device.type != "meta":
                *_, values = batches.stored(value)
                infinite = kind == "buffer" and values.is_floating_point()
                require_finite(f"{kind} {name!r}", values[~values.isinf()] if infinite else values)


def require_finite(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that holds a number that is not finite."""
    *_, values = batches.stored(tensor)
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InputError(
            f"{name} holds {bad} value(s) that are not finite out of {tensor.numel()}: "
            "clean it before measuring curvature"
        )


def is_mask(tensor: Tensor) -> bool:
    """Whether a tensor is an additive mask: nothing but 0 and −inf."""
    return tensor.is_floating_point() and bool(((tensor == 0) | (tensor == -torch.inf)).all())
