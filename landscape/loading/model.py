"""`model.pt`, whatever it is, becomes a live module, and nothing in it runs unasked."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.demos import DEMOS
from landscape.errors import InputError
from landscape.loading import Say, silent
from landscape.loading.contents import ARCHIVE, checked_archive
from landscape.loading.folder import build_from_folder, folder_weights, require_modest
from landscape.loading.kinds import WORDS, Kind, sniff
from landscape.loading.names import call, current_folder
from landscape.loading.program import Program, load_program
from landscape.loading.torchscript import load_torchscript
from landscape.loading.weights import (
    Inert,
    find_weights,
    fit,
    pickle_refusal,
    read_weights,
)

# The only factories that are called because a file names them.
_OWN = {demo.factory for demo in DEMOS.values()}


@dataclass(frozen=True)
class Opened:
    """A model file, opened.

    Attributes:
        module: the live model.
        kind: what the file is, in words.
        archive: the content of a problem archive; empty for every other kind.
        program: the exported program, if it is one.
    """

    module: nn.Module
    kind: str
    archive: Mapping[str, Any] = field(default_factory=dict)
    program: Program | None = None


def open_model(
    path: Path,
    *,
    model: str | nn.Module | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    say: Say = silent,
) -> Opened:
    """Open a model file of any known kind.

    Args:
        path: the file, or a Hugging Face folder.
        model: `package.module:callable` that builds the model, or a module to load the weights into.
        model_args: keyword arguments of that callable.
        weights: where in a checkpoint the weights lie, such as "ema".
        trust_pickle: run the code of the file: pickled modules, TorchScript, programs as they are.
        say: told, in a sentence, of every choice made and every file run.

    Raises:
        InputError: the file is damaged, of an unknown kind, or would run code; the weights do not fit.
    """
    kind = sniff(path)
    build = _Builder(model, dict(model_args or {}), say)
    if kind in ("torchscript", "program"):
        return _open_program(path, kind, build, trust_pickle, say)
    if kind == "folder":
        file = folder_weights(path)
        module = build() if model is not None else _seeded(lambda: build_from_folder(path))
        content = read_weights(file, sniff(file))
        fit(module, find_weights(content, file, weights, say), file, say)
        return Opened(module, WORDS[kind])
    if kind == "pickle" or (trust_pickle and kind in ("saved", "legacy-saved")):
        content = _unpickled(path, kind, trust_pickle)
    else:
        content = read_weights(path, kind)
    if isinstance(content, Mapping) and content.get("format") == ARCHIVE:
        return _open_archive(path, checked_archive(content, path), build, trust_pickle, say)
    whole = _module_in(content)  # only where the pickle was run
    if whole is not None and model is None:
        return Opened(whole, f"pickled {type(whole).__name__}")
    if whole is not None:
        content = whole.state_dict()
    if model is None:
        raise _no_model(path, content, weights, say)
    module = build()
    fit(module, find_weights(content, path, weights, say), path, say)
    return Opened(module, f"{WORDS[kind]} holding weights" if kind != "index" else WORDS[kind])


def _no_model(path: Path, content: Any, weights: str | None, say: Say) -> InputError:
    """The sentence for a file that opens only with a model."""
    if isinstance(content, Inert):
        return pickle_refusal(path, "is a pickled object")
    if not isinstance(content, Mapping):
        what = type(content).__name__
        return InputError(
            f"{str(path)!r} holds a {what}, not weights, a model or a problem archive"
        )
    find_weights(content, path, weights, say)  # what is missing may be more than a model
    return InputError(
        f"{str(path)!r} holds weights without a model: say --model package.module:factory"
    )


class _Builder:
    """Builds the model that the user named, once it is needed."""

    def __init__(self, model: str | nn.Module | None, arguments: dict[str, Any], say: Say) -> None:
        self.model, self.arguments, self.say = model, arguments, say

    def __call__(
        self, own: str | None = None, arguments: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """The user's module, or that of one of the factories of the embedded demos."""
        if isinstance(self.model, nn.Module):
            return self.model
        name = self.model or own
        assert name is not None
        given = self.arguments if self.model else {**(arguments or {}), **self.arguments}
        say = self.say if self.model else silent
        module = call(name, given, say=say)
        if not isinstance(module, nn.Module):
            raise InputError(f"{name!r} returned a {type(module).__name__}, not a torch.nn.Module")
        return module


def _open_program(path: Path, kind: Kind, build: _Builder, trust: bool, say: Say) -> Opened:
    """A file that brings its own model."""
    if build.model is not None:
        raise InputError(
            f"{str(path)!r} is a {WORDS[kind]} and brings its own model: leave --model away"
        )
    if kind == "torchscript":
        return Opened(_trainable(load_torchscript(path, trust=trust), say), WORDS[kind])
    program = load_program(path, str(path), trust=trust)
    return Opened(_trainable(program.module, say), WORDS[kind], program=program)


def _open_archive(
    path: Path,
    content: Mapping[str, Any],
    build: _Builder,
    trust: bool,
    say: Say,
) -> Opened:
    if "program" in content and build.model is None:
        program = load_program(content["program"].numpy().tobytes(), str(path), trust=trust)
        return Opened(program.module, "problem archive with an exported program", content, program)
    factory = content.get("factory") or {"name": "none", "arguments": {}}
    name, arguments = factory["name"], factory["arguments"]
    if build.model is None and name not in _OWN:
        raise InputError(
            f"{str(path)!r} names the factory {name!r}, which is none of landscape's own: if you trust "
            f"it, say --model {name}"
        )
    weights = find_weights(content.get("state_dict"), path, None, say)
    if build.model is None:  # sizes in a file are no reason to fill the memory
        require_modest(arguments, str(path))
        with torch.device("meta"):
            promised = sum(p.numel() for p in build(name, arguments).parameters())
        storages = {w.untyped_storage().data_ptr(): w.untyped_storage() for w in weights.values()}
        if promised > sum(storage.nbytes() for storage in storages.values()):
            raise InputError(
                f"{str(path)!r} describes a model of {promised:,} parameters and does not hold so many"
            )
    module = build(name, arguments)
    fit(module, weights, path, say)
    return Opened(module, "problem archive", content)


def _unpickled(path: Path, kind: Kind, trust: bool) -> Any:
    """What a pickle makes when it runs."""
    if not trust:
        raise pickle_refusal(path, f"is a {WORDS[kind]}")
    try:
        with current_folder(), path.open("rb") as file:
            if kind == "pickle":
                return pickle.load(file)
            return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # code of the author's may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the pickle {str(path)!r} cannot be opened: {type(error).__name__}: {reason}; the classes it "
            "names must be importable from the current folder"
        ) from error


def _module_in(content: Any) -> nn.Module | None:
    """A module in an unpickled file: the object itself, or the one under a usual key."""
    if isinstance(content, nn.Module):
        return content
    if isinstance(content, Mapping):
        found = [content[k] for k in ("model", "net", "network", "ema", "module") if k in content]
        return next((thing for thing in found if isinstance(thing, nn.Module)), None)
    return None


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build()


def _trainable(module: nn.Module, say: Say) -> nn.Module:
    """A program whose weights were all frozen when it was saved: they are what is to be studied."""
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    if parameters and not any(p.requires_grad for p in parameters):
        say("every parameter was saved frozen: all of them are studied")
        for parameter in parameters:
            parameter.requires_grad_(True)
    return module
