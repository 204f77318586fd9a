"""Hugging Face model folders: `config.json` says which model, weights lie beside it."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from landscape.errors import InputError
from landscape.loading.kinds import read_json
from landscape.memory import available_bytes
from landscape.numerals import memory

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What these ask for is code of the author, other packages, or downloads.
_REFUSED = (
    *("auto_map", "quantization_config", "use_timm_backbone", "use_pretrained_backbone"),
    *("attribute_map", "trust_remote_code", "base_config_key", "sub_configs"),
)
_REFUSED_TYPES = ("timm_wrapper", "timm_backbone", "mra", "yoso", "rwkv")
_REPEATED = re.compile(r"layer|depth|stage|num_blocks?$|n_blocks?$")
_DEEPEST = 20


def folder_weights(path: Path) -> Path:
    """The file of weights in a model folder.

    Raises:
        InputError: there is none.
    """
    found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise InputError(f"the folder {str(path)!r} holds none of {', '.join(_WEIGHTS)}")
    return found


def build_from_folder(path: Path) -> nn.Module:
    """The model that `config.json` describes, without its weights, with attention written out.

    Only classes that the installed transformers lists among its own models are made, and nothing is
    downloaded.

    Raises:
        InputError: transformers is missing, the description asks for code, packages or downloads, or the
            model would not fit in memory.
    """
    config = read_json(path / "config.json")
    shown = repr(str(path / "config.json"))
    for where, key, value in _entries(config):
        if key in _REFUSED and value:
            raise InputError(
                f"{shown} asks for {where}, that is for code, packages or downloads which this file may not "
                "choose: build the model yourself and name it with --model"
            )
    require_modest(config, str(path / "config.json"))
    try:
        import transformers
        from transformers.models.auto import modeling_auto
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError as error:
        raise InputError(
            f"{str(path)!r} is a Hugging Face model folder, and transformers is not installed: run "
            'pip install "torch-landscape[hf]"'
        ) from error
    kind = config.get("model_type")
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    tables = [getattr(modeling_auto, t) for t in dir(modeling_auto) if t.endswith("MAPPING_NAMES")]
    known = {entry for table in tables for value in table.values() for entry in _names(value)}
    types = [kind for kind in CONFIG_MAPPING_NAMES if kind not in _REFUSED_TYPES]
    if kind not in types or name not in list(known):
        raise InputError(
            f"{shown} names the model {str(name)[:60]!r} of type {str(kind)[:60]!r}, which is none that "
            f"transformers {transformers.__version__} can build from a description: name the class with "
            "--model"
        )
    try:
        with _without_hub():
            description = transformers.AutoConfig.for_model(**_without_choices(config))
            build = getattr(transformers, str(name))._from_config
            plain = {"attn_implementation": "eager", "dtype": torch.float32}
            with torch.device("meta"):
                sketch = build(description, **plain)
            needed = sum(t.nbytes for t in (*sketch.parameters(), *sketch.buffers()))
            if needed > available_bytes() // 2:
                raise InputError(
                    f"{shown} describes a model of {memory(needed)} in float32, more than half of the free "
                    "memory: use a larger machine"
                )
            network: nn.Module = build(description, **plain)
    except InputError:
        raise
    except Exception as error:  # a wrong description fails in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{shown} describes no model that can be built: {reason}") from error
    return network


@contextlib.contextmanager
def _without_hub() -> Iterator[None]:
    """No downloads while a model is built, of kernels or of anything else."""
    from transformers.integrations import hub_kernels

    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError("the model asks for a kernel from a hub: build it yourself, with --model")

    with contextlib.ExitStack() as stack:
        for name in ("get_kernel", "lazy_load_kernel"):
            if hasattr(hub_kernels, name):
                stack.enter_context(mock.patch.object(hub_kernels, name, refuse))
        stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True))
        yield


def require_modest(sizes: dict[str, Any], name: str) -> None:
    """Refuse sizes, read from a file, that would only keep the machine busy.

    Raises:
        InputError: more than 1,000 layers, a million classes, 10⁸ of anything, or a list of more than a
            thousand entries.
    """
    for where, key, value in _entries(sizes):
        most = 1000 if _REPEATED.search(key) else 10**6 if key == "num_labels" else 10**8
        many = isinstance(value, int) and value > most
        if many or (isinstance(value, list) and len(value) > 1000):
            raise InputError(f"{name!r} asks for {where} = {str(value)[:40]}: no model has so many")


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _entries(thing: Any, where: str = "", key: str = "", depth: int = 0) -> Iterator[Any]:
    """Every entry of nested dictionaries and lists: its full name, its own name and its value."""
    if depth > _DEEPEST:
        raise InputError(
            f"the entry {where[:60]!r} is nested too deeply for a description of a model"
        )
    if key:
        yield where, key, thing
    if isinstance(thing, dict):
        for name, value in thing.items():
            yield from _entries(value, f"{where}.{name}" if where else name, str(name), depth + 1)
    elif isinstance(thing, list):
        for value in thing:
            yield from _entries(value, where, key, depth + 1)


def _without_choices(config: dict[str, Any]) -> dict[str, Any]:
    """The description without what chooses kernels (names may point to a hub), types and origins."""
    return {
        key: _without_choices(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not key.startswith("_")
        and not key.endswith("_implementation")
        and key not in ("torch_dtype", "dtype", "transformers_version")
    }
