"""Layers in a form whose second derivative is cheap, for tracing only.

Autograd writes the second derivative of a convolution's weight gradient as a convolution with kernels as
large as images, and that of normalisation in many passes over the activations.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]


class Rewritten(TorchFunctionMode):
    """Convolutions and normalisations replaced by the forms below in every call inside."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved: dict[int, Convolved] = {}  # by the identity of the result

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = None
        if func in _CONVOLUTIONS:
            result = self._convolution(*_CONVOLUTIONS[func], *args, **kwargs)
        elif func is F.batch_norm:
            result = self._batch_norm(*args, **kwargs)
        elif func in (F.layer_norm, torch.layer_norm):
            result = self._layer_norm(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def _convolution(
        self,
        dims: int,
        transposed: bool,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *others: Any,
        **named: Any,
    ) -> Tensor | None:
        order = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        options: dict[str, Any] = {"output_padding": 0, "groups": 1, "dilation": 1}
        options |= dict(zip(order, others, strict=False)) | named
        if isinstance(padding, str) or input.ndim != dims + 2 or input.is_complex():
            return None
        spread = [
            list(v) if isinstance(v, (tuple, list)) and len(v) == dims else [_only(v)] * dims
            for v in (stride, padding, options["dilation"], options["output_padding"])
        ]
        steps, pads, gaps, extra = spread
        geometry = (steps, pads, gaps, transposed, extra, options["groups"])
        found = Convolved(input, weight, bias, geometry)
        result = found.result()
        self.convolved[id(result)] = found._replace(kept=result)
        return result

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """With running statistics it is affine in every channel, and a part of the convolution before it."""
        if training or running_mean is None or running_var is None:
            return None
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        before = self.convolved.get(id(input))
        if before is None or before.geometry[3]:
            shape = (1, -1, *[1] * (input.ndim - 2))
            return input * scale.view(shape) + shift.view(shape)
        if before.bias is not None:
            shift = shift + before.bias * scale
        weight = before.weight * scale.view(-1, *[1] * (input.ndim - 1))
        return before._replace(weight=weight, bias=shift).result()

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *others: Any,
        **named: Any,
    ) -> Tensor | None:
        if input.dtype not in (torch.float32, torch.float64):  # narrower ones are summed in float32
            return None
        axes = tuple(range(-len(normalized_shape), 0))
        result: Tensor = _Standardise.apply(input, axes, eps)
        result = result if weight is None else result * weight
        return result if bias is None else result + bias


class Convolved(NamedTuple):
    """A convolution and its result, kept so that its identity stays its own."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry
    kept: Tensor | None = None

    def result(self) -> Tensor:
        result: Tensor = _Convolution.apply(self.input, self.weight, self.geometry)
        if self.bias is None:
            return result
        return result + self.bias.view(-1, *[1] * (self.input.ndim - 2))


class _Convolution(torch.autograd.Function):
    """A convolution without bias; `geometry` as `aten.convolution` takes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _convolve(x, weight, geometry)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[:2])
        return *_Gradients.apply(cotangents[0], x, weight, ctx.geometry, needed), None


class _Gradients(torch.autograd.Function):
    """Both gradients of a convolution, each bilinear: one in (g, W), the other in (g, x)."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: Geometry,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _pull(g, x, weight, geometry, needed)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (for_x, for_weight), geometry = cotangents, ctx.geometry
        g, x, weight = ctx.saved_tensors
        to_g = to_x = to_weight = None
        if for_x is not None:
            to_g = _convolve(for_x, weight, geometry)
            if ctx.needs_input_grad[2]:
                to_weight = _pull(g, for_x, weight, geometry, (False, True))[1]
        if for_weight is not None:
            other = _convolve(x, for_weight, geometry)
            to_g = other if to_g is None else to_g + other
            if ctx.needs_input_grad[1]:
                to_x = _pull(g, x, for_weight, geometry, (True, False))[0]
        return to_g, to_x, to_weight, None, None


def _convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    result: Tensor = aten.convolution(x, weight, None, *geometry)
    return result


def _pull(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    gradients = aten.convolution_backward(g, x, weight, None, *geometry, [*needed, False])
    return gradients[0], gradients[1]


class _Standardise(torch.autograd.Function):
    """h = r (x − m(x)) with r = (m((x − m(x))²) + ε)^(−1/2), m the mean over some axes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = axes, eps
        return _standardised(x, axes, eps)[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _StandardiseGradient.apply(cotangents[0], x, *ctx.options), None, None


class _StandardiseGradient(torch.autograd.Function):
    """r P(g) with P(g) = g − m(g) − h m(g h), which is symmetric.

    With a = m(c P(g)), b = m(g h) and e = m(c h), the cotangent c of the result goes to r P(c) for g and to
    −r² (a h + b P(c) + e P(g)) for x.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.options = axes, eps
        h, r = _standardised(x, axes, eps)
        return _projected(g, h, axes)[0] * r

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (c,), (g, x), (axes, eps) = cotangents, ctx.saved_tensors, ctx.options
        h, r = _standardised(x, axes, eps)
        of_c, e = _projected(c, h, axes)
        to_g, to_x = of_c * r, None
        if ctx.needs_input_grad[1]:
            of_g, b = _projected(g, h, axes)
            a = (c * of_g).mean(axes, keepdim=True)
            factor = -r.square()
            to_x = (h * factor) * a + of_c * (b * factor) + (of_g * factor) * e
        return to_g, to_x, None, None


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(axes, keepdim=True)
    r = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    return centred * r, r


def _projected(g: Tensor, h: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """P(g) and m(g h)."""
    share = (g * h).mean(axes, keepdim=True)
    return g - g.mean(axes, keepdim=True) - h * share, share


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value


_CONVOLUTIONS: dict[Any, tuple[int, bool]] = {
    F.conv1d: (1, False),
    F.conv2d: (2, False),
    F.conv3d: (3, False),
    F.conv_transpose1d: (1, True),
    F.conv_transpose2d: (2, True),
    F.conv_transpose3d: (3, True),
}


class ChannelsLast(TorchDispatchMode):
    """Images laid out with their channels last, whatever the operations inside would choose."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (aten.view.default, aten._unsafe_view.default) and args[0].ndim == 4:
            return aten.reshape.default(*args)
        result = func(*args, **(kwargs or {}))
        if getattr(func, "is_view", False) or func._schema.is_mutable:
            return result
        return torch.utils._pytree.tree_map_only(Tensor, channels_last, result)


def channels_last(tensor: Tensor) -> Tensor:
    """A batch of images or kernels with its channels last; anything else as it is."""
    if tensor.ndim != 4 or not tensor.is_floating_point():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
