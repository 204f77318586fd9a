"""How fast are the products?  Every engine and the peers on the same work, interleaved in one process.

    pip install -c constraints.txt -r tests/benchmarks/requirements-peers.txt
    python tests/benchmarks/products.py [mlp gpt resnet] [--slq 5] [--json figures/data/products.json]

The unit is the gradient: time per vector over the time of one gradient on the same four batches. Peers
that are not installed are left out, and the table says so.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import platform
import resource
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

VECTORS = 8
ROUNDS = 5
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


def measure(name: str) -> dict[str, Any]:
    works, ours = contestants(name)
    times: dict[str, list[float]] = {label: [] for label in works}
    tracing = {}
    with sdpa_kernel(SDPBackend.MATH):
        for turn in range(1 + ROUNDS):
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
        "problem": name,
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
        for _ in range(ROUNDS):
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
        "problem": name,
        "basis": known,
        "seconds": {part: statistics.median(values) for part, values in times.items()},
        "shares": {kind: seconds / whole for kind, seconds in spent.items()},
    }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slq(batch: int, probes: int, steps: int, which: str) -> dict[str, Any]:
    """One density on ResNet-20, ours or PyHessian's, in a process of its own: seconds and memory."""
    torch.manual_seed(0)
    model = resnet20().eval()
    data = [(torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))) for _ in range(BATCHES)]
    loss = nn.CrossEntropyLoss()
    weights = list(model.parameters())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for x, y in data:
            torch.autograd.grad(loss(model(x), y), weights)
        times.append(time.perf_counter() - start)
    base = peak()
    start = time.perf_counter()
    plan = None
    if which == "ours":
        problem = ls.Problem(model, "cross_entropy", data)
        H = ls.Hessian(problem)
        ls.spectral_density(H, probes=probes, steps=steps)
        plan = H.plan.to_dict()
    else:
        from pyhessian import hessian

        if not hasattr(torch, "eig"):  # removed from torch; PyHessian 0.1 asks for it
            torch.eig = _eig  # type: ignore[attr-defined]
        hessian(model, loss, dataloader=data, cuda=False).density(iter=steps, n_v=probes)
    return {
        "seconds": time.perf_counter() - start,
        "bytes_above_gradient": peak() - base,
        "peak_bytes": peak(),
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
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def save(report: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=["mlp", "gpt", "resnet"])
    parser.add_argument("--slq", type=int, default=0, help="interleaved runs of the density")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        which, *numbers = arguments.one
        print(json.dumps(slq(*map(int, numbers), which)))
        return
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "vectors": VECTORS,
        "batches": BATCHES,
        "rounds": ROUNDS,
        "problems": [],
        "lanczos_steps": [],
    }
    for name in arguments.problems:
        found = measure(name)
        report["problems"].append(found)
        for label, row in found["rows"].items():
            print(f"{name:8} {label:28} {row['gradients_per_vector']:6.2f}", flush=True)
        print(f"{name:8} best peer / ours {found['best_peer_over_ours']}", flush=True)
        report["lanczos_steps"].append(lanczos_step(name))
        print(report["lanczos_steps"][-1], flush=True)
        save(report, arguments.json)
    if arguments.slq:
        runs = []
        for _ in range(arguments.slq):
            for which in ("ours", "PyHessian"):
                run = in_fresh_process(["--one", which, "16", "8", "50"])
                runs.append({"which": which} | run)
                print(which, run["seconds"], run["bytes_above_gradient"], flush=True)
        report["slq"] = {"batch": 16, "probes": 8, "steps": 50, "runs": runs}
        flat = {n: in_fresh_process(["--one", "ours", "16", "2", str(n)]) for n in (20, 200)}
        report["slq"]["peak_bytes_by_steps"] = {n: run["peak_bytes"] for n, run in flat.items()}
        print(report["slq"]["peak_bytes_by_steps"], flush=True)
        save(report, arguments.json)


if __name__ == "__main__":
    main()
