"""Running the user's model without leaving a trace, and finding the module at fault when it fails."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.batches import named_tensors

NormStats = Literal["running", "batch"]
_BatchNorm = nn.modules.batchnorm._BatchNorm
_RNN = (nn.RNNBase, nn.RNNCellBase)


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
def undisturbed(model: nn.Module, norm_stats: NormStats) -> Iterator[None]:
    """Evaluation mode inside, batch normalisation as `norm_stats` says; the model as it was after.

    Everything a module keeps in its attributes is put back: mode, cached tensors, hooks' by-products.
    """
    saved = [(m, dict(m.__dict__), _contents(m)) for m in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fused encoder layer has no derivative and other rounding.
        torch.backends.mha.set_fastpath_enabled(False)
        for module in model.modules():
            module.training = False
            if isinstance(module, _BatchNorm) and norm_stats == "batch":
                # Batch statistics come with training=True; this keeps the running ones from moving.
                module.training, module.track_running_stats = True, False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, attributes, contents in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in contents.items():
                # The very same table, since hook handles and others hold references to it.
                table = attributes[name]
                table.clear()
                (table.extend if isinstance(table, list) else table.update)(content)


def _contents(module: nn.Module) -> dict[str, Any]:
    """What stands in a module's own tables (parameters, buffers, hooks, lists), one level deep."""
    tables = (dict, list, set)
    return {name: copy.copy(v) for name, v in module.__dict__.items() if isinstance(v, tables)}


@contextlib.contextmanager
def differentiable(device: torch.device, *, has_rnn: bool) -> Iterator[None]:
    """Kernels with a second derivative, in full precision, whatever the caller's surroundings.

    Fused attention has none on any device, cuDNN's recurrent kernels have none on CUDA.
    """
    cudnn = torch.backends.cudnn
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if has_rnn and device.type == "cuda":
            stack.enter_context(cudnn.flags(enabled=False))
        yield


def has_rnn(model: nn.Module) -> bool:
    return any(isinstance(module, _RNN) for module in model.modules())


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the batch normalisation layers."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def culprits(
    model: nn.Module,
    run: Callable[[], Any],
    test: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool],
) -> list[str]:
    """Names of the innermost modules for which `test(module, args, kwargs)` holds while `run()` runs.

    Every module is tested with the very inputs it received, its children before itself.
    """
    found: list[str] = []
    busy = False

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            nonlocal busy
            inner = any(
                other == name or other.startswith(f"{name}.") or not name for other in found
            )
            if busy or inner:
                return
            busy = True
            try:
                if test(module, args, kwargs):
                    found.append(name)
            finally:
                busy = False

        return look

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [describe(model, name) for name in found]


def describe(model: nn.Module, name: str) -> str:
    """A module as a person would name it: `encoder.drop (Dropout)`."""
    kind = type(model.get_submodule(name)).__name__
    return f"{name} ({kind})" if name else f"the model itself ({kind})"


def is_random(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a module gives two answers to the same input."""
    first, second = (_tensors(module.forward(*args, **kwargs)) for _ in range(2))
    return any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def makes_non_finite(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a module turns finite inputs into an output that is not finite."""
    outputs = _tensors(module.forward(*args, **kwargs))
    return not all(bool(torch.isfinite(output).all()) for output in outputs)


def lacks_second_derivative(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether differentiating a module's output twice raises."""
    weights = [p for p in module.parameters() if p.requires_grad]

    def leaf(x: Any) -> Any:
        floating = isinstance(x, Tensor) and x.is_floating_point()
        return x.detach().requires_grad_() if floating else x

    args = tuple(leaf(x) for x in args)
    kwargs = {name: leaf(x) for name, x in kwargs.items()}
    leaves = weights + [
        x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad
    ]
    try:
        outputs = [x for x in _tensors(module.forward(*args, **kwargs)) if x.requires_grad]
        if outputs and leaves:
            total = torch.stack([output.square().sum() for output in outputs]).sum()
            first = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
            squares = [g.square().sum() for g in first if g is not None and g.requires_grad]
            if squares:
                torch.autograd.grad(torch.stack(squares).sum(), leaves, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return True
    return False


def _tensors(output: Any) -> list[Tensor]:
    return [tensor for _, tensor in named_tensors(output) if tensor.is_floating_point()]
