"""What must be bit-identical after any call: the model, and the state of the process."""

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach()
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return tensor.contiguous().clone().reshape(-1).view(torch.uint8).numpy().tobytes()


def photograph(model: nn.Module) -> dict:
    """Everything that must be bit-identical: kept as bytes or identities, not as references."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {
        "values": {n: (id(t), _bytes(t)) for n, t in tensors},
        "versions": {n: t._version for n, t in tensors},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), _bytes(p.grad))
            for n, p in model.named_parameters()
        },
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "attributes": {
            n: {k: id(v) for k, v in vars(m).items() if k != "training"}
            for n, m in model.named_modules()
        },
        "hooks": {
            n: [len(v) for k, v in vars(m).items() if "hook" in k and hasattr(v, "__len__")]
            for n, m in model.named_modules()
        },
    }


def surroundings() -> list:
    numpy_state = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        random.getstate(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
    ]


class HostReads(TorchDispatchMode):
    """Counts what takes a number out of a tensor: on a GPU every one would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        self.count += func in reads
        return func(*args, **(kwargs or {}))
