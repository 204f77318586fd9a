"""How fast are the products?  Every engine and the peers on the same work, interleaved in one process.

    pip install -c constraints.txt -r tests/benchmarks/requirements-peers.txt
    python tests/benchmarks/products.py [mlp gpt resnet density] [--json figures/data/products.json]

The unit is the gradient: time per vector over the time of one gradient on the same four batches. Peers
that are not installed are left out, and the table says so.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape as ls
from landscape.demos.models import gpt, mlp, resnet20
from landscape.memory import Peak

VECTORS = 8
BATCHES = 4


def token_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def problems(name: str) -> tuple[nn.Module, Any, Any, str]:
    """Model, loss for the peers, data, loss for us."""
    torch.manual_seed(0)
    if name == "mlp":
        data = [(torch.randn(360, 64), torch.randint(10, (360,))) for _ in range(BATCHES)]
        return mlp(hidden=(128, 128)), nn.CrossEntropyLoss(), data, "cross_entropy"
    if name == "gpt":
        data = [(torch.randint(96, (8, 64)), torch.randint(96, (8, 64))) for _ in range(BATCHES)]
        return gpt(), token_loss, data, "token_cross_entropy"
    data = [(torch.randn(64, 1, 28, 28), torch.randint(10, (64,))) for _ in range(BATCHES)]
    return resnet20().eval(), nn.CrossEntropyLoss(), data, "cross_entropy"


def contestants(name: str) -> tuple[dict[str, tuple[Callable[[], Any], int]], dict[str, Any]]:
    """name → (work, vectors in it), and the operators of ours among them."""
    model, loss, data, our_loss = problems(name)
    weights = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in weights)
    block = torch.randn(size, VECTORS)
    vector = block[:, 0].contiguous()
    parts = [
        piece.view(p.shape) for piece, p in zip(vector.split([p.numel() for p in weights]), weights)
    ]

    def gradient() -> None:
        for x, y in data:
            torch.autograd.grad(loss(model(x), y), weights)

    works: dict[str, tuple[Callable[[], Any], int]] = {"gradient": (gradient, 1)}
    problem = ls.Problem(model, our_loss, data)
    ours = {
        "Hessian, split": ls.Hessian(problem, engine="split"),
        "Hessian, double backward": ls.Hessian(problem, engine="double backward"),
        "GaussNewton, split": ls.GaussNewton(problem, engine="split"),
        "Fisher, split": ls.Fisher(problem, engine="split"),
        "EmpiricalFisher, split": ls.EmpiricalFisher(problem, engine="split"),
    }
    for label, operator in ours.items():
        works[label] = (lambda A=operator: A @ block, VECTORS)  # type: ignore[misc]
    single = ls.Hessian(problem, engine="split")
    ours["Hessian, split, one vector"] = single
    works["Hessian, split, one vector"] = (lambda: single @ vector, 1)

    with contextlib.suppress(ImportError):
        from pyhessian import hessian

        for batch in data:
            model.zero_grad()
        peer = hessian(model, loss, dataloader=data, cuda=False)
        works["PyHessian"] = (lambda: peer.dataloader_hv_product(parts), 1)
    with contextlib.suppress(ImportError):
        from hessian_eigenthings import HessianOperator, supervised_loss

        things = HessianOperator(model, data, supervised_loss(loss))
        works["hessian-eigenthings"] = (lambda: things.matvec(vector), 1)
    with contextlib.suppress(ImportError):
        from curvlinops import HessianLinearOperator

        if not isinstance(loss, nn.Module):
            flat = nn.Sequential(model, nn.Flatten(0, 1))
            data_flat = [(x, y.flatten()) for x, y in data]
            linear = HessianLinearOperator(
                flat,
                nn.CrossEntropyLoss(),
                weights,
                data_flat,
                check_deterministic=False,
                num_data=sum(len(y) for _, y in data_flat),
                batch_size_fn=lambda x: x.numel(),
            )
        else:
            linear = HessianLinearOperator(model, loss, weights, data, check_deterministic=False)
        works["curvlinops, one vector"] = (lambda: linear @ vector, 1)
        works["curvlinops, block"] = (lambda: linear @ block, VECTORS)
    return works, ours


def measure(name: str, rounds: int) -> dict[str, Any]:
    works, ours = contestants(name)
    times: dict[str, list[float]] = {label: [] for label in works}
    tracing = {}
    with sdpa_kernel(SDPBackend.MATH):
        for turn in range(1 + rounds):
            for label, (work, vectors) in works.items():
                start = time.perf_counter()
                work()
                elapsed = time.perf_counter() - start
                if turn:
                    times[label].append(elapsed / vectors)
                else:
                    tracing[label] = elapsed
    gradient = statistics.median(times["gradient"])
    rows = {
        label: {
            "gradients_per_vector": statistics.median(values) / gradient,
            "first_call_seconds": tracing[label],
            "plan": ours[label].plan.to_dict() if label in ours else None,
        }
        for label, values in times.items()
    }
    peers = [
        row["gradients_per_vector"]
        for label, row in rows.items()
        if label not in ours and label != "gradient"
    ]
    best = min(peers) if peers else None
    found = rows["Hessian, split"]["gradients_per_vector"]
    return {
        "vectors": VECTORS,
        "batches": BATCHES,
        "gradient_seconds": gradient,
        "rows": rows,
        "best_peer_over_ours": best / found if best else None,
    }


MATRIX = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution")
MATRIX += ("convolution_backward",)
COPIES = ("copy", "clone", "cat", "fill", "resize", "empty", "empty_strided", "contiguous")


def lanczos_step(name: str, known: int = 50) -> dict[str, Any]:
    """Where the time of one Lanczos step goes, with `known` basis vectors: seconds, and shares of them."""
    from torch.profiler import ProfilerActivity, profile

    from landscape.estimators.sums import dots, norms

    model, _, data, our_loss = problems(name)
    A = ls.Hessian(ls.Problem(model, our_loss, data), engine="split")
    A.expect(known)
    basis = torch.linalg.qr(torch.randn(A.shape[0], known))[0].T.contiguous()
    q = basis[-1]
    A.product(q[:, None])

    def recurrence(w: torch.Tensor) -> torch.Tensor:
        alpha = dots(q, w)
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        return alpha / norms(w)

    times: dict[str, list[float]] = {"product": [], "recurrence": []}
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(5):
            start = time.perf_counter()
            w = A.product(q[:, None])[:, 0]
            middle = time.perf_counter()
            recurrence(w)
            times["product"].append(middle - start)
            times["recurrence"].append(time.perf_counter() - middle)
    spent = {
        "matrix products and convolutions": 0.0,
        "copies": 0.0,
        "everything else in torch": 0.0,
    }
    for event in profiled.key_averages():
        operation = event.key.removeprefix("aten::").rstrip("_")
        kind = "copies" if operation in COPIES else "everything else in torch"
        kind = "matrix products and convolutions" if operation in MATRIX else kind
        spent[kind] += event.self_cpu_time_total / 1e6
    whole = sum(map(sum, times.values()))
    return {
        "basis": known,
        "seconds": {part: statistics.median(values) for part, values in times.items()},
        "shares": {kind: seconds / whole for kind, seconds in spent.items()},
    }


def density(which: str, batch: int, probes: int, steps: int) -> dict[str, Any]:
    """One density on ResNet-20, ours or PyHessian's, in a process of its own: seconds and memory.

    Memory is the peak above what was held before, that of a gradient subtracted.
    """
    torch.manual_seed(0)
    model = resnet20().eval()
    data = [(torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))) for _ in range(BATCHES)]
    loss = nn.CrossEntropyLoss()
    weights = list(model.parameters())
    times = []
    with Peak(torch.device("cpu")) as of_gradient:
        for _ in range(3):
            start = time.perf_counter()
            for x, y in data:
                torch.autograd.grad(loss(model(x), y), weights)
            times.append(time.perf_counter() - start)
    plan = None
    with Peak(torch.device("cpu")) as of_density:
        start = time.perf_counter()
        if which == "ours":
            H = ls.Hessian(ls.Problem(model, "cross_entropy", data))
            ls.spectral_density(H, probes=probes, steps=steps)
            plan = H.plan.to_dict()
        elif which == "tracer":  # what torch loads to trace anything at all
            x = torch.ones(1, 1)
            tiny = ls.Problem(nn.Linear(1, 1), "mse", (x, x))
            ls.Hessian(tiny, engine="split") @ torch.ones(2)
        else:
            from pyhessian import hessian

            torch.eig = _eig  # type: ignore[attr-defined] # PyHessian 0.1 asks for what torch removed
            hessian(model, loss, dataloader=data, cuda=False).density(iter=steps, n_v=probes)
        seconds = time.perf_counter() - start
    assert of_gradient.bytes is not None and of_density.bytes is not None, "Linux tells"
    return {
        "seconds": seconds,
        "bytes": of_density.bytes,
        "bytes_above_gradient": of_density.bytes - of_gradient.bytes,
        "gradient_seconds": statistics.median(times),
        "plan": plan,
    }


def _eig(matrix: torch.Tensor, eigenvectors: bool) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def versions() -> dict[str, str | None]:
    """Of what can be imported: an installed peer may lack a dependency."""
    names = {
        "torch": "torch",
        "pyhessian": "pyhessian",
        "hessian-eigenthings": "hessian_eigenthings",
        "curvlinops-for-pytorch": "curvlinops",
    }
    found: dict[str, str | None] = {}
    for name, module in names.items():
        try:
            importlib.import_module(module)
            found[name] = importlib.metadata.version(name)
        except ImportError:
            found[name] = None
    return found


def in_fresh_process(arguments: list[str]) -> dict[str, Any]:
    import subprocess

    done = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def densities(rounds: int) -> dict[str, Any]:
    """Runs of the density in turns; its memory with larger batches, and with few and many steps."""
    runs = []

    def run(which: str, batch: int, probes: int, steps: int) -> None:
        about = {"which": which, "batch": batch, "probes": probes, "steps": steps}
        runs.append(about | in_fresh_process([which, str(batch), str(probes), str(steps)]))
        print(*about.values(), runs[-1]["seconds"], runs[-1]["bytes_above_gradient"], flush=True)

    for _ in range(rounds):
        for which in ("ours", "PyHessian"):
            run(which, 16, 8, 50)
    run("tracer", 1, 1, 1)
    run("ours", 16, 2, 20)
    run("ours", 16, 2, 200)
    # PyHessian keeps the basis of one probe at a time, and ours does not grow with steps.
    run("ours", 64, 8, 5)
    run("PyHessian", 64, 1, 50)
    return {"runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["mlp", "gpt", "resnet", "density"])
    parser.add_argument("--json", type=Path, help="updated, part by part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        which, *numbers = arguments.one
        print(json.dumps(density(which, *map(int, numbers))))
        return
    report: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    for name in arguments.parts:
        if name == "density":
            found = densities(arguments.rounds)
        else:
            found = measure(name, arguments.rounds)
            for label, row in found["rows"].items():
                print(f"{name:8} {label:28} {row['gradients_per_vector']:6.2f}", flush=True)
            print(f"{name:8} best peer / ours {found['best_peer_over_ours']}", flush=True)
            found["lanczos_step"] = lanczos_step(name)
            print(found["lanczos_step"], flush=True)
        about = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rounds": arguments.rounds,
        }
        report[name] = found | about
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
