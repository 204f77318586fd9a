"""Using the user's model, data and process without leaving a trace."""

import contextlib
import copy
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import batches, handling
from landscape.handling import NormStats
from landscape.substitutes import Functions, Notice, Substituted, differentiable_internals


@contextlib.contextmanager
def preserved_randomness(seed: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Seed every global generator (torch, CUDA, NumPy, random) inside, and put them back after."""
    cuda = torch.cuda.is_initialized()
    saved_cuda = torch.cuda.get_rng_state_all() if cuda else []
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    saved_generators = [generator.get_state() for generator in generators]
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
        if cuda:
            torch.cuda.set_rng_state_all(saved_cuda)
        for generator, state in zip(generators, saved_generators, strict=True):
            generator.set_state(state)


@contextlib.contextmanager
def undisturbed(modules: Sequence[nn.Module], norm_stats: NormStats) -> Iterator[None]:
    """Evaluation mode inside, batch normalisation as `norm_stats` says; every module as it was after.

    Put back are a module's attributes (mode, parameters, buffers, hooks, cached values), the contents
    of its lists, sets and dictionaries, nested ones too, and the values of plain tensors.
    """
    attributes = [(module, dict(module.__dict__)) for module in modules]
    values = [value for _, table in attributes for value in table.values()]
    seen: set[int] = set()
    tables = [(table, copy.copy(table)) for value in values for table in _tables(value, seen)]
    # Some frameworks put their own kind of dictionary there.
    own_tables = [table for m in modules for table in (m._parameters, m._buffers)]
    tables += [(table, dict(table)) for table in own_tables if id(table) not in seen]
    tensors = [(value, value.detach().clone()) for value in values if isinstance(value, Tensor)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    special = handling.rules(norm_stats, torch.device("cpu"))
    try:
        # The fused encoder layer has no derivative and other rounding.
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            module.training = False
            for rule in special:
                if rule.treat is not None and rule.applies(module):
                    rule.treat(module)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, own in attributes:
            module.__dict__.clear()
            module.__dict__.update(own)
        # The very same tables and tensors are refilled: hook handles and others hold references.
        for table, contents in tables:
            table.clear()
            (table.extend if isinstance(table, list) else table.update)(contents)
        for tensor, value in tensors:
            if not all(map(torch.equal, batches.stored(tensor.detach()), batches.stored(value))):
                tensor.detach().copy_(value)


def _tables(value: Any, seen: set[int]) -> Iterator[Any]:
    """A value and the values in it, as far as they are plain dictionaries, lists or sets."""
    if type(value) in (dict, OrderedDict, list, set) and id(value) not in seen:
        seen.add(id(value))
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tables(item, seen)


@contextlib.contextmanager
def float32_arithmetic(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """How matrix products and convolutions of float32 numbers round, on every device.

    Torch lets cuDNN use TF32, three digits, unless told otherwise; and a process may have asked for it,
    or for bfloat16 on the CPU, everywhere (`torch.set_float32_matmul_precision`).
    """
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    kernels: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn]  # type: ignore[attr-defined]
    kernels += [mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]
    before = [kernel.fp32_precision for kernel in kernels]
    try:
        for kernel in kernels:
            kernel.fp32_precision = precision
        yield
    finally:
        for kernel, value in zip(kernels, before, strict=True):
            kernel.fp32_precision = value


@contextlib.contextmanager
def differentiable(
    modules: Sequence[nn.Module],
    device: torch.device,
    functions: Functions,
    notice: Notice,
) -> Iterator[None]:
    """Kernels with a second derivative, in full precision, whatever the caller's surroundings.

    Fused attention has none on any device, and cuDNN's recurrent kernels have none on CUDA; `functions`
    are those to be written out (`SUBSTITUTES`).
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(float32_arithmetic("ieee"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(differentiable_internals(notice))
        if functions:
            stack.enter_context(Substituted(functions, notice))
        yield
