"""Gauss quadratures from Lanczos coefficients, and how far two of them are apart."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

Array = NDArray[np.float64]


class Measure(NamedTuple):
    """A quadrature: Ritz values, ascending, their weights, and the residuals of the Ritz pairs, each of
    shape (m,). The weights of a whole probe sum to 1."""

    nodes: Array
    weights: Array
    residuals: Array


class Tridiagonal(NamedTuple):
    """What m Lanczos steps from one probe leave: diagonal and couplings, each of shape (m,).

    The last coupling is that of the residual; it is 0 where the probe's Krylov space was exhausted.
    """

    diagonal: Array
    couplings: Array

    @property
    def exhausted(self) -> bool:
        """Whether the quadrature is exact for every function."""
        return not len(self.couplings) or self.couplings[-1] == 0

    def measure(self, steps: int | None = None, mass: float = 1.0) -> Measure:
        """Gauss quadrature after all steps, or after the first few of them; the weights sum to `mass`."""
        diagonal, couplings = self.diagonal[:steps], self.couplings[:steps]
        if not len(diagonal):
            return Measure(diagonal, diagonal, diagonal)
        nodes, vectors = eigh_tridiagonal(diagonal, couplings[:-1])
        weights = mass * vectors[0].astype(float) ** 2
        return Measure(nodes.astype(float), weights, couplings[-1] * abs(vectors[-1]))


def merged(deflated: Measure, bulk: Measure) -> Measure:
    """One measure of both, ascending."""
    if not len(deflated.nodes):
        return bulk
    parts = [np.concatenate(pair) for pair in zip(deflated, bulk, strict=True)]
    order = np.argsort(parts[0], kind="stable")
    return Measure(*(part[order] for part in parts))


def wasserstein(one: Measure, other: Measure) -> float:
    """The Wasserstein-1 distance ∫ |F − G| dx of two measures of the same mass.

    Example:
        >>> import numpy as np
        >>> at = lambda x: Measure(np.array([x]), np.ones(1), np.zeros(1))
        >>> wasserstein(at(1.0), at(3.0))
        2.0
    """
    nodes = np.concatenate([one.nodes, other.nodes])
    order = np.argsort(nodes, kind="stable")
    gap = np.concatenate([one.weights, -other.weights])[order].cumsum()
    return float(abs(gap[:-1]) @ np.diff(nodes[order]))
