"""The state of an optimiser in a file."""

from pathlib import Path
from typing import Any

from landscape.errors import InputError

KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "opt")


def read_optimizer(path: str | Path) -> dict[str, Any]:
    """What an optimiser's `state_dict()` was, saved alone or under a usual key of a checkpoint.

    Args:
        path: written by `torch.save`; nothing in it is run.

    Raises:
        InputError: it cannot be read, or holds no such state.
    """
    import torch

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"cannot read an optimiser's state from {str(path)!r}: {reason}"
        ) from error
    inside = [found.get(key) for key in KEYS] if isinstance(found, dict) else []
    for place in [found, *inside]:
        if isinstance(place, dict) and {"state", "param_groups"} <= set(place):
            return place
    raise InputError(
        f"{str(path)!r} holds no state of an optimiser: save optimizer.state_dict(), alone or in a "
        f"dictionary under one of {', '.join(KEYS)}"
    )
