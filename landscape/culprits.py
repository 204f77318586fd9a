"""Which module is at fault: every module tried with the inputs that it received."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from landscape.batches import named_tensors


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
    """Whether a module's output is not finite; the first such module is where it arises."""
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
            if reaches_error_node(first):
                return True
            squares = [g.square().sum() for g in first if g is not None and g.requires_grad]
            if squares:
                torch.autograd.grad(torch.stack(squares).sum(), leaves, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return True
    return False


def reaches_error_node(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the graph behind some tensors holds a node that only raises.

    That is how torch marks the result of a backward function that is differentiable once. Since
    `torch.autograd.grad` walks only towards its inputs, it would pass such a node by in silence.
    """
    todo = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if "Error" in node.name():
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return False


def _tensors(output: Any) -> list[Tensor]:
    return [tensor for _, tensor in named_tensors(output) if tensor.is_floating_point()]
