"""Are the numbers right?  Four trained demos against an independent float64 oracle.

    python tests/benchmarks/accuracy.py [DEMO …] [--json figures/data/accuracy.json]

For every demo: `landscape demo`, then `landscape spectrum` in float32 as a person would run it, then
the truth from code that shares nothing with the package but the weights, the samples and the model
class: the dense Hessian where P ≤ 3,000, else SciPy's `eigsh` on double-backward products. The trace is
compared with the exact one (dense), or with Hutchinson's estimate from other probes in float64.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.demos import DEMOS
from landscape.demos.train import build_model
from landscape.loading.data import read_data

OPTIONS: dict[str, list[str]] = {
    "cnn": ["--probes", "30"],
    "regression": ["--probes", "30"],
    "transformer": ["--probes", "8", "--steps", "30"],
    "resnet": ["--probes", "8", "--steps", "30"],
}
LIMITS = {"resnet": 128}  # samples, where the demo's own subset would take the oracle an hour
CHUNK = 64  # samples per piece of the oracle; unlike any batch size of the runs
ORACLE_PROBES = 30


def oracle(archive: Path, name: str, limit: int | None) -> dict[str, Any]:
    """Top five eigenvalues and the trace in float64, on all samples or a subset of `limit`."""
    demo = DEMOS[name]
    content = torch.load(archive, weights_only=True)
    model = build_model(demo)
    model.load_state_dict(content["state_dict"])
    model = model.double().eval()
    inputs, targets = read_data(demo.data, limit=limit or content["data"]["limit"])
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    weights = list(model.parameters())
    sizes = [w.numel() for w in weights]
    size = sum(sizes)

    def mean_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = model(x)
        if demo.loss == "mse":
            return F.mse_loss(output, y.double())
        return F.cross_entropy(output.reshape(-1, output.shape[-1]), y.reshape(-1))

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(np.array(vector, float).reshape(-1)).split(sizes)
        direction = [p.view_as(w) for p, w in zip(pieces, weights, strict=True)]
        total = torch.zeros(size, dtype=torch.float64)
        with sdpa_kernel(SDPBackend.MATH):
            for start in range(0, len(inputs), CHUNK):
                x, y = inputs[start : start + CHUNK], targets[start : start + CHUNK]
                loss = mean_loss(x, y) * (len(x) / len(inputs))
                gradient = torch.autograd.grad(loss, weights, create_graph=True)
                along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
                found = torch.autograd.grad(along, weights)
                total += torch.cat([f.reshape(-1) for f in found])
        return total.numpy()

    if size <= 3000:
        matrix = np.stack([product(column) for column in np.eye(size)])
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        return {
            "kind": "dense",
            "eigenvalues": values[::-1][:5].tolist(),
            "trace": {"value": float(values.sum()), "standard_error": 0.0},
        }
    operator = LinearOperator((size, size), matvec=product, dtype=float)
    rng = np.random.default_rng(12345)
    values = eigsh(operator, 5, which="LA", tol=1e-8, v0=rng.standard_normal(size))[0]
    signs = rng.choice([-1.0, 1.0], (ORACLE_PROBES, size))
    samples = [float(z @ product(z)) for z in signs]
    return {
        "kind": f"eigsh, tol 1e-8; Hutchinson, {ORACLE_PROBES} other probes",
        "eigenvalues": sorted(values.tolist(), reverse=True),
        "trace": {
            "value": float(np.mean(samples)),
            "standard_error": float(np.std(samples, ddof=1) / math.sqrt(ORACLE_PROBES)),
        },
    }


def measure(name: str, folder: Path, limit: int | None = None) -> dict[str, Any]:
    """One demo: the command's own numbers beside the oracle's."""
    archive, result = folder / f"{name}.pt", folder / f"{name}.json"
    command = [sys.executable, "-m", "landscape_cli"]
    if not archive.exists():
        subprocess.run([*command, "demo", name, "-o", str(archive)], check=True)
    options = [*OPTIONS[name], *(["--limit", str(limit)] if limit else [])]
    subprocess.run(
        [*command, "spectrum", str(archive), *options, "--json", str(result)], check=True
    )
    found = json.loads(result.read_text())
    truth = oracle(archive, name, limit)
    errors = [
        abs(pair["value"] - value) / abs(value)
        for pair, value in zip(found["eigenvalues"], truth["eigenvalues"], strict=True)
    ]
    spread = math.hypot(found["trace"]["standard_error"], truth["trace"]["standard_error"])
    return {
        "demo": name,
        "command": f"landscape {' '.join(['spectrum', f'{name}.pt', *options])}",
        "parameters": found["parameters"],
        "samples": found["provenance"]["problem"]["samples"],
        "dtype": found["provenance"]["dtype"],
        "eigenvalues": found["eigenvalues"],
        "trace": found["trace"],
        "cost": found["cost"],
        "oracle": truth,
        "relative_errors": errors,
        "trace_deviation_in_standard_errors": (found["trace"]["value"] - truth["trace"]["value"])
        / spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demos", nargs="*", help="default: all four")
    parser.add_argument("--json", type=Path, default=Path("figures/data/accuracy.json"))
    parser.add_argument("--folder", type=Path, help="keep and reuse trained models here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        old = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
        rows = {row["demo"]: row for row in old}
        for name in arguments.demos or OPTIONS:
            rows[name] = measure(name, folder, LIMITS.get(name))
            report = {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
                f"{torch.get_num_threads()} threads",
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "scipy": scipy.__version__,
                },
                "rows": [rows[key] for key in OPTIONS if key in rows],
            }
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(report, indent=1))
            worst = max(rows[name]["relative_errors"])
            print(f"{name}: largest relative error of the top five {worst:.1e}")


if __name__ == "__main__":
    main()
