"""What helps while a network is trained: optimisers. The public names resolve on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.training.optimizers.adahessian import AdaHessian as AdaHessian
    from landscape.training.optimizers.mfac import MFAC as MFAC
    from landscape.training.optimizers.sophia import SophiaG as SophiaG
    from landscape.training.optimizers.sophia import SophiaH as SophiaH

_HOMES = {
    "AdaHessian": "optimizers.adahessian",
    "MFAC": "optimizers.mfac",
    "SophiaG": "optimizers.sophia",
    "SophiaH": "optimizers.sophia",
}
__all__ = ["MFAC", "AdaHessian", "SophiaG", "SophiaH"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'landscape.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"landscape.training.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
