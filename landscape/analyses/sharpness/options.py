"""What can be chosen about the measures of sharpness."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from landscape.errors import InputError

Scaled = Literal["all", "matrices"]


@dataclass(frozen=True)
class Options:
    """What all families of measures are given, as `sharpness` describes it.

    Raises:
        InputError: one is out of range.
    """

    rho: float
    adaptive_rho: float
    m: int
    scaled: Scaled
    steps: int
    restarts: int
    draws: int
    probes: int
    tolerance: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("rho", "adaptive_rho", "tolerance"):
            number = getattr(self, name)
            if not 0 < number < math.inf:
                raise InputError(f"{name} is {number}: it must be positive")
        least = {"m": 1, "steps": 1, "restarts": 1, "draws": 2, "probes": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least {bound}")
        if self.scaled not in get_args(Scaled):
            raise InputError(f"scaled is {self.scaled!r}: choose 'all' or 'matrices'")

    def radius(self, adaptive: bool) -> float:
        """ρ of the ℓ₂ ball."""
        return self.adaptive_rho if adaptive else self.rho
