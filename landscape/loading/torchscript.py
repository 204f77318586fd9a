"""TorchScript archives: programs for torch's own interpreter, opened only when they are trusted.

What was found: no Python of the file ever runs, but its code does, already while loading
(`__setstate__`), and it can call operators that write files (`aten::save`, `aten::from_file`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError


def load_torchscript(path: Path, *, trust: bool) -> nn.Module:
    """A TorchScript archive as a module whose weights can be replaced.

    Raises:
        InputError: it is not trusted, or cannot be loaded.
    """
    if not trust:
        raise InputError(
            f"{str(path)!r} is a TorchScript archive, whose code runs while it is loaded and can write "
            "files: save model.state_dict() or a torch.export program instead, or, if you trust the "
            "file, say --trust-pickle (trust_pickle=True)"
        )
    try:
        script = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # damaged archives fail in many ways
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load the TorchScript archive {str(path)!r}: {reason}") from error
    return Scripted(script.eval())


class Scripted(nn.Module):
    """A TorchScript module with its parameters and buffers as ordinary ones, under the same names.

    Before every call they are handed to the interpreter, which runs without its optimiser: fused
    kernels have no second derivative.

    Args:
        script: the module; it becomes the property of this one.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._script = [script]  # in a list: not a submodule, whose tables cannot be refilled
        self._places: list[tuple[str, str]] = []  # names of module and tensor
        for path, inner in script.named_modules():
            shell = self._shell(path)
            for name, parameter in inner.named_parameters(recurse=False):
                shell.register_parameter(name, nn.Parameter(parameter.detach().clone()))
                shell.get_parameter(name).requires_grad_(parameter.requires_grad)
                self._places.append((path, name))
            for name, buffer in inner.named_buffers(recurse=False):
                shell.register_buffer(name, buffer.detach().clone())
                self._places.append((path, name))

    def _shell(self, path: str) -> nn.Module:
        shell: nn.Module = self
        for part in path.split(".") if path else ():
            if part not in shell._modules:
                shell.add_module(part, nn.Module())
            shell = shell.get_submodule(part)
        return shell

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inner = dict(self._script[0].named_modules())
        for path, name in self._places:
            inner[path]._c.setattr(name, getattr(self.get_submodule(path), name))
        with torch.jit.optimized_execution(False):
            return self._script[0](*args, **kwargs)
