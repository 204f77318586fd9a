"""Curvature and loss landscapes of neural networks, with error bars.

The public names resolve on first use, so that `import landscape` alone loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from landscape import training as training

if TYPE_CHECKING:
    from landscape.analyses.axes import Axes as Axes
    from landscape.analyses.axes import gradient_axes as gradient_axes
    from landscape.analyses.axes import hessian_axes as hessian_axes
    from landscape.analyses.axes import model_axes as model_axes
    from landscape.analyses.axes import optimizer_axes as optimizer_axes
    from landscape.analyses.axes import random_axes as random_axes
    from landscape.analyses.axes import trajectory_axes as trajectory_axes
    from landscape.analyses.bench import Bench as Bench
    from landscape.analyses.bench import bench as bench
    from landscape.analyses.connectivity import Connectivity as Connectivity
    from landscape.analyses.connectivity import connectivity as connectivity
    from landscape.analyses.eigen import Eigen as Eigen
    from landscape.analyses.eigen import eigen as eigen
    from landscape.analyses.influence import Influence as Influence
    from landscape.analyses.influence import influence as influence
    from landscape.analyses.layers import Layers as Layers
    from landscape.analyses.layers import layers as layers
    from landscape.analyses.pruning import Pruning as Pruning
    from landscape.analyses.pruning import prune as prune
    from landscape.analyses.sampling import Sampling as Sampling
    from landscape.analyses.sampling import sampling_error as sampling_error
    from landscape.analyses.sharpness.battery import Sharpness as Sharpness
    from landscape.analyses.sharpness.battery import sharpness as sharpness
    from landscape.analyses.spectrum import Spectrum as Spectrum
    from landscape.analyses.spectrum import spectrum as spectrum
    from landscape.analyses.surface import Surface as Surface
    from landscape.analyses.surface import surface as surface
    from landscape.analyses.surfaces import surfaces as surfaces
    from landscape.analyses.topology import Topology as Topology
    from landscape.analyses.topology import topology as topology
    from landscape.analyses.trace import Trace as Trace
    from landscape.analyses.trace import trace_of as trace_of
    from landscape.errors import InputError as InputError
    from landscape.errors import LandscapeError as LandscapeError
    from landscape.errors import UntrustedResult as UntrustedResult
    from landscape.estimators.criteria import criteria as criteria
    from landscape.estimators.diagonal import diagonal as diagonal
    from landscape.estimators.functionals import effective_dimension as effective_dimension
    from landscape.estimators.functionals import functionals as functionals
    from landscape.estimators.functionals import log_determinant as log_determinant
    from landscape.estimators.lanczos import eigenpairs as eigenpairs
    from landscape.estimators.nystrom import Nystrom as Nystrom
    from landscape.estimators.nystrom import nystrom as nystrom
    from landscape.estimators.slq import spectral_density as spectral_density
    from landscape.estimators.solve import Solution as Solution
    from landscape.estimators.solve import solve as solve
    from landscape.estimators.trace import trace as trace
    from landscape.loading.archive import save_problem as save_problem
    from landscape.loading.problem import load_problem as load_problem
    from landscape.operators.base import Identity as Identity
    from landscape.operators.base import Operator as Operator
    from landscape.operators.empirical_fisher import EmpiricalFisher as EmpiricalFisher
    from landscape.operators.empirical_fisher import GradientCovariance as GradientCovariance
    from landscape.operators.fisher import Fisher as Fisher
    from landscape.operators.gauss_newton import GaussNewton as GaussNewton
    from landscape.operators.hessian import Hessian as Hessian
    from landscape.operators.inverse_fisher import InverseFisher as InverseFisher
    from landscape.operators.matrix import as_operator as as_operator
    from landscape.plots.surfaces import plot_surfaces as plot_surfaces
    from landscape.problem import Problem as Problem

__version__ = "0.1.0"

_HOMES = {
    "Bench": "analyses.bench",
    "bench": "analyses.bench",
    "Connectivity": "analyses.connectivity",
    "connectivity": "analyses.connectivity",
    "Eigen": "analyses.eigen",
    "eigen": "analyses.eigen",
    "Axes": "analyses.axes",
    "Surface": "analyses.surface",
    "surface": "analyses.surface",
    "surfaces": "analyses.surfaces",
    "gradient_axes": "analyses.axes",
    "hessian_axes": "analyses.axes",
    "model_axes": "analyses.axes",
    "optimizer_axes": "analyses.axes",
    "random_axes": "analyses.axes",
    "trajectory_axes": "analyses.axes",
    "Influence": "analyses.influence",
    "influence": "analyses.influence",
    "Layers": "analyses.layers",
    "layers": "analyses.layers",
    "Pruning": "analyses.pruning",
    "prune": "analyses.pruning",
    "Sampling": "analyses.sampling",
    "sampling_error": "analyses.sampling",
    "Sharpness": "analyses.sharpness.battery",
    "sharpness": "analyses.sharpness.battery",
    "Spectrum": "analyses.spectrum",
    "spectrum": "analyses.spectrum",
    "Topology": "analyses.topology",
    "topology": "analyses.topology",
    "Trace": "analyses.trace",
    "trace_of": "analyses.trace",
    "InputError": "errors",
    "LandscapeError": "errors",
    "UntrustedResult": "errors",
    "criteria": "estimators.criteria",
    "effective_dimension": "estimators.functionals",
    "functionals": "estimators.functionals",
    "log_determinant": "estimators.functionals",
    "diagonal": "estimators.diagonal",
    "eigenpairs": "estimators.lanczos",
    "Nystrom": "estimators.nystrom",
    "nystrom": "estimators.nystrom",
    "spectral_density": "estimators.slq",
    "trace": "estimators.trace",
    "Solution": "estimators.solve",
    "solve": "estimators.solve",
    "load_problem": "loading.problem",
    "save_problem": "loading.archive",
    "Identity": "operators.base",
    "Operator": "operators.base",
    "as_operator": "operators.matrix",
    "EmpiricalFisher": "operators.empirical_fisher",
    "GradientCovariance": "operators.empirical_fisher",
    "Fisher": "operators.fisher",
    "GaussNewton": "operators.gauss_newton",
    "Hessian": "operators.hessian",
    "InverseFisher": "operators.inverse_fisher",
    "plot_surfaces": "plots.surfaces",
    "Problem": "problem",
}
__all__ = [
    "Axes",
    "Bench",
    "Connectivity",
    "Eigen",
    "EmpiricalFisher",
    "Fisher",
    "GaussNewton",
    "GradientCovariance",
    "Hessian",
    "Identity",
    "Influence",
    "InputError",
    "InverseFisher",
    "LandscapeError",
    "Layers",
    "Nystrom",
    "Operator",
    "Problem",
    "Pruning",
    "Sampling",
    "Sharpness",
    "Solution",
    "Spectrum",
    "Surface",
    "Topology",
    "Trace",
    "UntrustedResult",
    "as_operator",
    "bench",
    "connectivity",
    "criteria",
    "diagonal",
    "effective_dimension",
    "eigen",
    "eigenpairs",
    "functionals",
    "gradient_axes",
    "hessian_axes",
    "influence",
    "layers",
    "load_problem",
    "log_determinant",
    "model_axes",
    "nystrom",
    "optimizer_axes",
    "plot_surfaces",
    "prune",
    "random_axes",
    "sampling_error",
    "save_problem",
    "sharpness",
    "solve",
    "spectral_density",
    "spectrum",
    "surface",
    "surfaces",
    "topology",
    "trace",
    "trace_of",
    "training",
    "trajectory_axes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'landscape' has no attribute {name!r}")
    return getattr(importlib.import_module(f"landscape.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
