"""Which module is at fault: every module tried with the inputs that it received."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

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


class AtWork(NamedTuple):
    """A module that has been called and has not returned, with what it was given."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextlib.contextmanager
def at_work(model: nn.Module) -> Iterator[list[AtWork]]:
    """The modules at work at any moment inside, outermost first; after an error, those it came from."""
    stack: list[AtWork] = []
    handles = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: stack.append(AtWork(name, module, args, kwargs))

    def leave(module: nn.Module, *_: Any) -> None:
        # Down to this one: a caller may have caught the error of one further in.
        while stack and stack.pop().module is not module:
            pass

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


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

    leaves: list[Tensor] = list(weights)

    def input_of(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return x
        leaves.append(x.detach().requires_grad_())
        return leaves[-1].clone()  # a leaf may not be changed in place, an input may

    args = tuple(input_of(x) for x in args)
    kwargs = {name: input_of(x) for name, x in kwargs.items()}
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
