"""The state of an optimiser from a file: tensors and numbers only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from landscape.errors import InputError

KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim")


def read_optimizer_state(path: str | Path) -> Mapping[str, Any]:
    """The `state_dict` of an optimiser, by itself or in a checkpoint under one of the usual keys.

    Raises:
        InputError: the file cannot be read without running code, or holds no such state.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(
            f"cannot read an optimiser's state from {str(path)!r} ({reason}): save "
            "optimizer.state_dict() with torch.save"
        ) from error
    places = [found]
    if isinstance(found, Mapping):
        places += [found[key] for key in KEYS if key in found]
    for place in places:
        if isinstance(place, Mapping) and "param_groups" in place and "state" in place:
            return place
    raise InputError(
        f"{str(path)!r} holds no optimiser's state, by itself or under {', '.join(KEYS)}: save "
        "optimizer.state_dict() with torch.save"
    )
