"""Does the 95 % interval of the trace hold the truth in 95 % of the runs?

    python tests/benchmarks/coverage.py [--seeds 500] [--json figures/data/coverage.json]

Matrices whose trace is known, 500 seeds for every method and problem: how often the interval holds
the truth, and at what cost. `ls.trace` is called as a person would call it, with a tolerance. Beside it
stand the rules that it does not use: to stop Hutchinson's estimator when its standard error looks small, to
fix the number of probes with a pilot and use fresh ones alone, and XTrace's leave-one-out error read as a
standard error. A second table has the products for 1 % on larger matrices, where Hutchinson's
estimator would need so many that its number follows from the known variance.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import landscape as ls
from landscape.estimators.probes import generator, rademacher

sys.path.insert(0, str(Path(__file__).parent.parent))
from spectra import Array, digits_net_hessian, with_spectrum

CONFIDENCE = 0.95
PILOT = 30
Row = dict[str, Any]
Run = tuple[float, float, float, int, str]  # value, lower, upper, products, method


def network(size: int, outliers: int = 10) -> Array:
    """A bulk at zero, a tenth of it negative, and outliers that carry most of the trace."""
    rng = np.random.default_rng(0)
    negative = -rng.exponential(0.02, size // 10)
    bulk = rng.exponential(0.02, size - len(negative) - outliers)
    return np.r_[negative, bulk, np.geomspace(2.0, 20.0, outliers)]


def low_rank(size: int) -> Array:
    """Five large eigenvalues over symmetric noise: one of them carries half of the variance."""
    noise = 0.2 * np.random.default_rng(1).standard_normal(size - 5)
    return np.r_[[40.0, 25.0, 20.0, 10.0, 8.0], noise]


def problems() -> dict[str, tuple[torch.Tensor, float]]:
    """Matrices, and a tolerance that Hutchinson's estimator reaches with some 100 probes."""
    return {
        "flat, indefinite": (with_spectrum(np.linspace(-1.0, 2.0, 600)), 0.01),
        "outliers over a bulk": (with_spectrum(network(600)), 0.05),
        "low rank plus noise": (with_spectrum(low_rank(600)), 0.08),
        "power law 1/i": (with_spectrum(1 / np.arange(1, 601)), 0.03),
        "trained network": (digits_net_hessian(), 0.05),
    }


def through_the_package(**options: Any) -> Callable[[ls.Operator, float, int], Run]:
    def run(A: ls.Operator, tolerance: float, seed: int) -> Run:
        found = ls.trace(A, tolerance=tolerance, seed=seed, **options)
        lower, upper = found.lower, found.upper
        if lower is None or upper is None:  # an indicator, read as a standard error all the same
            half = stats.norm.ppf((1 + CONFIDENCE) / 2) * found.standard_error
            lower, upper = found.value - half, found.value + half
        return found.value, lower, upper, found.cost.products, found.method

    return run


def samples_of(A: ls.Operator, count: int, source: torch.Generator) -> Array:
    probes = rademacher(A, count, source)
    return (probes * A.product(probes)).sum(0).numpy()


def interval(samples: Array, products: int, method: str) -> Run:
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(samples) - 1) * error
    return samples.mean(), samples.mean() - half, samples.mean() + half, products, method


def stop_when_small(A: ls.Operator, tolerance: float, seed: int) -> Run:
    """From the fifth probe on, stop as soon as the standard error is within the tolerance."""
    source, samples = generator(seed), np.empty(0)
    while True:
        for sample in samples_of(A, 8, source):
            samples = np.append(samples, sample)
            error = samples.std(ddof=1) / math.sqrt(len(samples)) if len(samples) >= 5 else math.inf
            if error <= tolerance * abs(samples.mean()) or len(samples) == 10_000:
                return interval(samples, len(samples), "stop")


def fresh_probes(A: ls.Operator, tolerance: float, seed: int) -> Run:
    """A pilot fixes the number, with a variance 90 % sure to be large enough; fresh probes alone."""
    source = generator(seed)
    pilot = samples_of(A, PILOT, source)
    safety = (PILOT - 1) / stats.chi2.ppf(0.1, PILOT - 1)
    count = safety * pilot.var(ddof=1) / (tolerance * pilot.mean()) ** 2
    count = max(10, min(10_000, math.ceil(count)))
    return interval(samples_of(A, count, source), PILOT + count, "fresh")


def xtrace(A: ls.Operator, _: float, seed: int) -> Run:
    found = ls.trace(A, method="xtrace", probes=60, seed=seed)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, found.probes - 1) * found.standard_error
    value = found.value
    return value, value - half, value + half, found.cost.products, "xtrace"


METHODS: dict[str, Callable[[ls.Operator, float, int], Run]] = {
    "auto, 1 %": lambda A, _, seed: through_the_package()(A, 0.01, seed),
    "auto": through_the_package(),
    "hutchinson": through_the_package(method="hutchinson"),
    "hutch++": through_the_package(method="hutch++"),
    "deflated": through_the_package(method="deflated"),
    "fresh probes": fresh_probes,
    "stop when small": stop_when_small,
    "xtrace, leave-one-out": xtrace,
}


def coverage(name: str, matrix: torch.Tensor, tolerance: float, method: str, seeds: int) -> Row:
    A, truth = ls.as_operator(matrix), float(matrix.trace())
    call = METHODS[method]
    if method == "deflated":
        pairs = ls.eigenpairs(A, 10, which="magnitude")
        call = through_the_package(method="deflated", deflate=pairs)
    start = 10_000 * list(METHODS).index(method)  # probes of its own for every method
    runs = [call(A, tolerance, seed) for seed in range(start, start + seeds)]
    values, lower, upper, products = (np.array([run[i] for run in runs]) for i in range(4))
    inside = (lower <= truth) & (truth <= upper)
    used = [run[4] for run in runs]
    return {
        "problem": name,
        "order": len(matrix),
        "tolerance": 0.01 if method == "auto, 1 %" else tolerance,
        "method": method,
        "seeds": seeds,
        "covered": int(inside.sum()),
        "coverage": float(inside.mean()),
        "median_products": float(np.median(products)),
        "median_width": float(np.median((upper - lower) / abs(truth))),
        "relative_rms_error": float(np.sqrt(np.mean((values / truth - 1) ** 2))),
        "used": {kind: used.count(kind) for kind in sorted(set(used))},
    }


def spectra(size: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    rank = np.arange(1, size + 1)
    return {
        "15 outliers, exponential bulk": np.r_[
            np.geomspace(2, 60, 15), rng.exponential(0.03, size - 15)
        ],
        "20 outliers, bulk 1/i": np.r_[np.geomspace(5, 100, 20), 1 / rank[: size - 20]],
        "network-like, 10 outliers": network(size),
        "100 outliers": np.r_[np.linspace(5, 10, 100), rng.exponential(0.03, size - 100)],
        "power law 1/i": 1 / rank,
        "power law 1/i²": 1.0 / rank**2,
        "geometric 0.9^i": 0.9**rank,
        "flat, positive": np.linspace(0, 1, size),
        "flat, indefinite": np.linspace(-1, 1.5, size),
    }


def products_needed(name: str, values: Array, seeds: int) -> Row:
    """Products to 1 %: measured for "auto", by Var zᵀAz = 2(‖A‖² − Σa²_ii) for Hutchinson's."""
    matrix = with_spectrum(values)
    A, truth = ls.as_operator(matrix), values.sum()
    variance = 2 * ((values**2).sum() - float(matrix.diag().square().sum()))
    plain = max(2.0, variance / (0.01 * truth) ** 2)
    found = [ls.trace(A, tolerance=0.01, seed=seed) for seed in range(seeds)]
    products = float(np.median([f.cost.products for f in found]))
    used = [f.method for f in found]
    errors = np.array([f.value / truth - 1 for f in found])
    return {
        "spectrum": name,
        "order": len(values),
        "hutchinson": plain,
        "auto": products,
        "ratio": plain / products,
        "relative_rms_error": float(np.sqrt((errors**2).mean())),
        "used": {kind: used.count(kind) for kind in sorted(set(used))},
    }


def merged(before: list[Row], rows: list[Row], *names: str) -> list[Row]:
    """The rows of both, those of now where the names agree."""
    found = {tuple(row[name] for name in names): row for row in [*before, *rows]}
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--size", type=int, default=2000, help="order in the second table")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--problems", nargs="*", default=list(problems()))
    parser.add_argument("--spectra", nargs="*", default=list(spectra(200)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, table = [], []
    for name in options.problems:
        matrix, tolerance = problems()[name]
        for method in options.methods:
            row = coverage(name, matrix, tolerance, method, options.seeds)
            rows.append(row)
            print(
                f"{name:22} {method:22} {100 * row['coverage']:5.1f} %  products "
                f"{row['median_products']:7.0f}  width {100 * row['median_width']:.2f} %  "
                f"rms {100 * row['relative_rms_error']:.2f} %  {row['used']}",
                flush=True,
            )
    for name in options.spectra:
        row = products_needed(name, spectra(options.size)[name], 11)
        table.append(row)
        print(
            f"{name:32} hutchinson {row['hutchinson']:7.0f}  auto {row['auto']:6.0f}  "
            f"{row['ratio']:5.1f} ×  rms {100 * row['relative_rms_error']:.2f} %  {row['used']}",
            flush=True,
        )
    if options.json:
        if options.json.exists():  # rows that are not measured now are kept
            before = json.loads(options.json.read_text())
            rows = merged(before["rows"], rows, "problem", "method")
            table = merged(before["products"], table, "spectrum")
        versions = {"torch": torch.__version__, "numpy": np.__version__}
        report = {
            "confidence": CONFIDENCE,
            "rows": rows,
            "products": table,
            "machine": platform.machine(),
            "versions": versions,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
