"""Weights: read from whatever holds them, found inside it, and fitted to a model."""

import difflib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.loading import Say, silent
from landscape.loading.container import require_honest_zip
from landscape.loading.kinds import Kind, read_json, sniff
from landscape.loading.pickles import require_modest_pickles

# Under which keys of a checkpoint weights are looked for, the first that is there.
_PLACES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("weights", "params", "generator", "ema_state_dict", "model_ema", "state_dict_ema", "ema"),
)
_MOST_MODULES, _DEEPEST = 100_000, 100
_IGNORED = ("num_batches_tracked", "position_ids")  # no weights; absent from older files


class Inert:
    """Stands for an object of a checkpoint whose class is not imported: it only keeps what it was given."""

    def __init__(self, *args: Any) -> None:
        self.given = args


def read_saved(path: Path, *, legacy: bool = False) -> Any:
    """What `torch.save` wrote, read without importing or calling anything that the file names.

    Objects of other classes than torch's own (a Namespace of arguments, say) come as `Inert` ones.

    Raises:
        InputError: the file is damaged, or holds what only running its pickle could open.
    """
    known: list[Any] = []
    if not legacy:
        require_honest_zip(path, stored=True)
    try:
        require_modest_pickles(path, legacy=legacy)
        if not legacy:
            known = [
                (Inert, name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)
            ]
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # damaged and hostile files fail in many ways
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        if "GLOBAL" in reason or "Unsupported" in str(error) or "blocked" in str(error):
            raise pickle_refusal(path, "holds more than weights") from error
        raise InputError(f"cannot read {str(path)!r}: {reason.removesuffix('.')}") from error


def pickle_refusal(path: Path, what: str) -> InputError:
    """The sentence about a pickle that would have to run."""
    return InputError(
        f"{str(path)!r} {what}, and opening it would run code of its author: save model.state_dict() "
        "instead and name the model with --model package.module:factory, or, if you trust the file, "
        "say --trust-pickle (trust_pickle=True)"
    )


def read_weights(path: Path, kind: Kind) -> Any:
    """The content of a file of weights: a state dict, or a checkpoint with one somewhere inside.

    Raises:
        InputError: it cannot be read without running code, or is damaged.
    """
    if kind in ("saved", "legacy-saved"):
        return read_saved(path, legacy=kind == "legacy-saved")
    if kind == "safetensors":
        return _read_safetensors(path)
    return _read_shards(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"cannot read {str(path)!r} as safetensors: {error}") from error


def _read_shards(path: Path) -> dict[str, Tensor]:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise InputError(f"{str(path)!r} has no weight_map: it is no index of weights")
    weights: dict[str, Tensor] = {}
    for shard in dict.fromkeys(index.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(
                f"{str(path)!r} names the file {shard!r}: it must lie in the same folder"
            )
        file = path.with_name(shard)
        if not file.is_file():
            raise InputError(f"{str(path)!r} names the file {shard!r}, which is not beside it")
        kind = sniff(file)
        if kind not in ("saved", "legacy-saved", "safetensors"):
            raise InputError(f"{str(file)!r} holds no weights")
        weights |= find_weights(read_weights(file, kind), file, None, silent)
    missing = [name for name in index if name not in weights]
    if missing:
        raise InputError(f"{str(path)!r} promises {missing[0]!r}, which no file holds")
    return weights


def find_weights(content: Any, path: Path, key: str | None, say: Say) -> dict[str, Tensor]:
    """The state dict in the content of a file.

    Args:
        content: a state dict, a checkpoint, or an inert module.
        path: for messages.
        key: where it lies, such as "ema" or "model.encoder"; None looks in the usual places.
        say: told which place was taken.

    Raises:
        InputError: there is none, or none under that key.
    """
    if key is not None:
        content = _under(content, key, path)
    direct = _as_state_dict(content)
    if direct is not None:
        return direct
    if isinstance(content, Mapping):
        places = [place for place in _PLACES if _as_state_dict(content.get(place)) is not None]
        if places:
            others = f"; there are also {', '.join(places[1:])} (--weights)" if places[1:] else ""
            say(f"the weights lie under {places[0]!r}{others}")
            found = _as_state_dict(content[places[0]])
            assert found is not None
            return found
    if key is None and isinstance(content, Inert):
        raise pickle_refusal(path, "holds an object, not weights")
    raise InputError(
        f"{str(path)!r} holds no state dict: there are {_listed(content)}; say which with --weights KEY"
    )


def _under(content: Any, key: str, path: Path) -> Any:
    """What lies under a dotted key: of nested dictionaries, or of the names of a state dict."""
    here = content
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            break
        here = here[part]
    else:
        return here
    state = _as_state_dict(content) or {}
    start = key.rstrip(".") + "."
    found = {n.removeprefix(start): value for n, value in state.items() if n.startswith(start)}
    if not found:
        raise InputError(f"{str(path)!r} has nothing under {key!r}: there are {_listed(content)}")
    return found


def _listed(content: Any) -> str:
    if not isinstance(content, Mapping) or not content:
        return f"no names, but a {type(content).__name__}"
    names = [shown(name) for name in content]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def shown(value: Any) -> str:
    """Something from a file in a few words; writing out all of it could take for ever."""
    return str(value)[:60] if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _as_state_dict(thing: Any) -> dict[str, Tensor] | None:
    """A state dict, also that of a module which was pickled whole; None if there is none."""
    if isinstance(thing, Inert):
        thing = dict(_tensors_of(thing))
    if not isinstance(thing, Mapping) or not thing:
        return None
    if not all(isinstance(name, str) for name in thing):
        return None
    kept = {name: value for name, value in thing.items() if isinstance(value, Tensor)}
    extra = [name for name in thing if name not in kept and not name.endswith("_extra_state")]
    return kept if kept and not extra else None


def _tensors_of(root: Inert) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters and buffers of an inert module, as in its state dict."""
    todo, seen = [("", root)], 0
    while todo and seen < _MOST_MODULES:  # what refers to itself would never end
        prefix, module = todo.pop()
        seen += 1
        state = vars(module)
        hidden = state.get("_non_persistent_buffers_set")
        for table in ("_parameters", "_buffers"):
            for name, value in _entries(state.get(table)):
                if isinstance(value, Tensor) and not (isinstance(hidden, set) and name in hidden):
                    yield f"{prefix}{name}", value
        children = [
            (f"{prefix}{name}.", child)
            for name, child in _entries(state.get("_modules"))
            if isinstance(child, Inert) and prefix.count(".") < _DEEPEST
        ]
        todo += reversed(children)


def _entries(table: Any) -> list[tuple[str, Any]]:
    found = table.items() if isinstance(table, Mapping) else ()
    return [(name, value) for name, value in found if isinstance(name, str)]


def fit(network: nn.Module, weights: Mapping[str, Tensor], path: Path, say: Say) -> None:
    """Load weights into a module, by their names or by names that differ only in wrapping.

    `module.` (DataParallel), `_orig_mod.` (compiled) and one common prefix (the attribute under which
    another module, such as Lightning's, kept the model) make no difference; tied weights may be
    missing under all names but one.

    Raises:
        InputError: names or shapes do not fit; the module is left as it was.
    """
    own = network.state_dict()
    mapped, unexpected = _match(own, weights, say)
    tied = _tied(network)
    missing = [
        name
        for name in own
        if name not in mapped
        and not name.endswith(_IGNORED)
        and not any(other in mapped for other in tied.get(name, ()))
    ]
    unexpected = [name for name in unexpected if not name.endswith(_IGNORED)]
    wrong = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in mapped.items()
        if value.shape != own[name].shape
    ]
    if missing or unexpected or wrong:
        raise InputError(
            f"the weights in {str(path)!r} do not fit {type(network).__name__} "
            f"({_mismatch(missing, unexpected, wrong)}): check --model and its arguments"
        )
    dtypes = {value.dtype for value in mapped.values() if value.is_floating_point()}
    narrow = [
        str(t).removeprefix("torch.") for t in dtypes if t not in (torch.float32, torch.float64)
    ]
    if narrow:
        say(
            f"weights stored as {' and '.join(sorted(narrow))} are computed with in the model's type"
        )
    network.load_state_dict(mapped, strict=False)


def _match(
    own: Mapping[str, Any], weights: Mapping[str, Tensor], say: Say
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the module's own names, and the names that belong to it but have no place."""
    exact = {name: value for name, value in weights.items() if name in own}
    ours, theirs = ({_bare(name): name for name in names} for names in (own, weights))
    if len(exact) == len(own) or len(ours) < len(own) or len(theirs) < len(weights):
        return exact, [name for name in weights if name not in own]
    prefix = _prefix(ours, theirs, say)
    inside = {bare: name for bare, name in theirs.items() if bare.startswith(prefix)}
    found = {
        ours[bare.removeprefix(prefix)]: weights[name]
        for bare, name in inside.items()
        if bare.removeprefix(prefix) in ours
    }
    if found and any(name not in weights for name in found):
        outside = len(theirs) - len(inside)
        say(
            f"weights matched without the prefix {prefix!r} of their names"
            + (f"; {outside} tensors without it belong to something else" if outside else "")
            if prefix
            else "weights matched without the wrapping (module., _orig_mod.) of their names"
        )
    placed = {id(value) for value in found.values()}
    return found, [name for name in inside.values() if id(weights[name]) not in placed]


def _prefix(ours: Mapping[str, str], theirs: Mapping[str, str], say: Say) -> str:
    """What stands before the module's own names, if most of them are found behind it; else nothing."""
    needed = [name for name in ours if not name.endswith(_IGNORED)]
    starts = [
        name.removesuffix(needed[0]) for name in theirs if needed and name.endswith(needed[0])
    ]
    covering = [
        start
        for start in starts
        if sum(f"{start}{name}" in theirs for name in needed) > len(needed) / 2
    ]
    if "" in covering or not covering:
        return ""
    chosen = "model." if "model." in covering else covering[0]
    if len(covering) > 1:
        others = ", ".join(repr(start.rstrip(".")) for start in covering if start != chosen)
        say(f"weights that fit lie under {chosen.rstrip('.')!r}; also under {others} (--weights)")
    return chosen


def _bare(name: str) -> str:
    """A name without the wrappers of DataParallel and torch.compile, weight norm by its new names."""
    parts = [part for part in name.split(".") if part not in ("module", "_orig_mod")]
    bare = ".".join(parts)
    bare = re.sub(r"weight_g$", "parametrizations.weight.original0", bare)
    return re.sub(r"weight_v$", "parametrizations.weight.original1", bare)


def _tied(network: nn.Module) -> dict[str, list[str]]:
    """For every name in a state dict, the other names of the same tensor."""
    names: dict[int, list[str]] = {}
    for find in (network.named_parameters, network.named_buffers):
        for name, value in find(remove_duplicate=False):
            names.setdefault(id(value), []).append(name)
    return {name: [n for n in group if n != name] for group in names.values() for name in group}


def _mismatch(missing: list[str], unexpected: list[str], wrong: list[str]) -> str:
    missing, unexpected = ([name[:200] for name in names] for names in (missing, unexpected))
    close = [
        f"{name} → {near[0]}"
        for name in unexpected[:20]
        if (near := difflib.get_close_matches(name, missing, n=1))
    ]
    return "; ".join(
        f"{label} {len(names)}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of wrong shape", wrong),
            ("nearest names", close),
        )
        if names
    )
