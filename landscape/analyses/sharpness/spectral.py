"""Sharpness from the Hessian's spectrum: its largest eigenvalue, its trace, its Frobenius norm."""

import math

import torch

from landscape.analyses.sharpness.measure import Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import block_spectra, block_traces
from landscape.estimators.lanczos import eigenpairs

FAMILY = "spectral"


def spectral(subject: Subject, options: Options) -> Part:
    """Rows of λ_max, trace and Frobenius norm."""
    since = subject.spent()
    top = eigenpairs(subject.hessian, 1, tolerance=options.tolerance, seed=options.seed)
    value, residual = float(top.values[0]), float(top.residuals[0])
    failures = []
    if not bool(top.converged[0]):
        failures.append(
            f"λ_max = {value:.6g} has residual {residual:.2g}, above the tolerance {options.tolerance:g} of the "
            f"largest, after {top.steps} Lanczos steps"
        )
    rows = [
        subject.row(
            since,
            FAMILY,
            "λ_max",
            value,
            error=residual,
            error_from="residual",
            definition="largest eigenvalue of H",
            source="Keskar 2017, arXiv:1609.04836",
            note=f"{top.steps} Lanczos steps",
        )
    ]
    since = subject.spent()
    everything = torch.arange(subject.problem.size)
    found = block_spectra(
        subject.hessian,
        [everything],
        probes=options.probes,
        steps=1,
        shared_probes=0,
        dense_up_to=options.probes,
        seed=options.seed,
    )
    traces = block_traces(found)
    square, square_error = float(found.squares[0, 0]), float(found.squares_error[0, 0])
    exact = found.exact(0)
    how = "" if exact else f"Hutchinson, {options.probes} probes"
    same = {"error_from": "probes", "note": how, "source": "Hutchinson 1990"}
    rows.append(
        subject.row(
            since,
            FAMILY,
            "trace",
            traces.total,
            error=traces.total_error,
            definition="Σᵢ Hᵢᵢ",
            **same,  # type: ignore[arg-type]
        )
    )
    root = math.sqrt(square)
    rows.append(
        subject.row(
            subject.spent(),
            FAMILY,
            "Frobenius norm",
            root,
            error=square_error / (2 * root) if root else 0.0,
            definition="‖H‖_F",
            **same | {"note": "from the products of the trace"},  # type: ignore[arg-type]
        )
    )
    return Part(rows, failures=failures)
