"""Hugging Face model folders: `config.json` says which model, weights lie beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
# What these ask for is code of the author, packages, or downloads.
_REFUSED = ("auto_map", "quantization_config", "use_timm_backbone", "use_pretrained_backbone")


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
                f"{shown} asks for {where} = {str(value)[:60]}, that is for code, packages or downloads "
                "which this file may not choose: build the model yourself and name it with --model"
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
    if kind not in CONFIG_MAPPING_NAMES or name not in known:
        raise InputError(
            f"{shown} names the model {name!r} of type {kind!r}, which transformers "
            f"{transformers.__version__} does not list: name the class with --model"
        )
    kept = _without_choices(config)
    try:
        description = transformers.AutoConfig.for_model(**kept)
        build = getattr(transformers, str(name))._from_config
        with torch.device("meta"):
            needed = 4 * sum(p.numel() for p in build(description).parameters())
        if needed > available_bytes() // 2:
            raise InputError(
                f"{shown} describes a model of {memory(needed)} in float32, more than half of the free "
                "memory: use a larger machine"
            )
        network: nn.Module = build(description, attn_implementation="eager", dtype=torch.float32)
    except InputError:
        raise
    except Exception as error:  # a wrong description fails in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{shown} describes no model that can be built: {reason}") from error
    return network


def require_modest(sizes: dict[str, Any], name: str) -> None:
    """Refuse sizes, read from a file, that would only keep the machine busy.

    Raises:
        InputError: more than 1,000 layers, or a number beyond 10⁹.
    """
    for where, key, value in _entries(sizes):
        many = isinstance(value, int) and value > (1000 if "layers" in key else 10**9)
        if many or (isinstance(value, list) and len(value) > 1000):
            raise InputError(f"{name!r} asks for {where} = {str(value)[:40]}: no model has so many")


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _entries(config: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every entry of nested dictionaries: its full name, its own name and its value."""
    for key, value in config.items():
        full = f"{where}.{key}" if where else str(key)
        yield full, str(key), value
        if isinstance(value, dict):
            yield from _entries(value, full)


def _without_choices(config: dict[str, Any]) -> dict[str, Any]:
    """The description without what chooses kernels (names may point to a hub), types and origins."""
    return {
        key: _without_choices(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not key.endswith("_implementation")
        and key not in ("torch_dtype", "dtype", "_name_or_path", "transformers_version")
    }
