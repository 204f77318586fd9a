"""How soon are ten eigenpairs certain?  Ours and the peers on one model and its data, in one process.

    pip install -c constraints.txt -r tests/benchmarks/requirements-peers.txt
    landscape demo resnet -o resnet.pt
    python tests/benchmarks/estimators.py resnet.pt [eigen memory resume] [--json figures/data/estimators.json]

Relative residual is ‖Av − λv‖ / λ₁ throughout, measured afterwards by one operator for all.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import landscape as ls
from landscape import checkpoint
from landscape.estimators import search
from landscape.estimators.sums import dots, norms

K, GOAL, SAMPLES, BATCH = 10, 1e-4, 512, 64
SHIFT = 25  # steps from which hessian-eigenthings is tried


class Setting:
    """The trained network, its batches, and the operator by which every answer is measured."""

    def __init__(self, path: Path, samples: int = SAMPLES) -> None:
        self.problem = ls.load_problem(path, limit=samples, batch_size=BATCH)
        self.model = self.problem.model.eval()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        with self.problem.evaluation() as run:
            self.data = [(x.clone(), y.clone()) for x, y in run.batches()]
        self.judge = ls.Hessian(self.problem)
        self.judge.expect(1000)

    def residuals(self, vectors: Tensor) -> list[float]:
        """Relative residuals, with Rayleigh quotients of the judge."""
        vectors = vectors / norms(vectors).to(vectors)
        images = torch.cat([self.judge @ part for part in vectors.split(4, 1)], 1)
        values = dots(vectors, images)
        rest = norms(images - vectors * values.to(vectors))
        return [float(r / values.max()) for r in rest]


def ours(setting: Setting, **options: Any) -> dict[str, Any]:
    """A fresh operator, tracing included; when which residual was reached."""
    history: list[dict[str, Any]] = []
    advance = search.Search.advance
    start = time.perf_counter()

    def watched(seeking: Any) -> None:
        advance(seeking)
        if seeking.rest is None or seeking.rest.steps == 0:
            bounds = [float(b) / seeking.norm for b in seeking.ritz.bounds[seeking.chosen]]
            elapsed = time.perf_counter() - start
            history.append({"seconds": elapsed, "products": seeking.steps, "residuals": bounds})

    search.Search.advance = watched  # type: ignore[method-assign]
    try:
        pairs = ls.eigenpairs(ls.Hessian(setting.problem), K, tolerance=GOAL, **options)
    finally:
        search.Search.advance = advance  # type: ignore[method-assign]
    reached = next(h for h in history if len(h["residuals"]) == K and max(h["residuals"]) <= GOAL)
    return {
        "seconds": time.perf_counter() - start,
        "products": pairs.cost.products,
        "reached": reached,
        "complete": pairs.complete,
        "missing": pairs.missing,
        "values": pairs.values.tolist(),
        "residuals": setting.residuals(pairs.vectors),
        "history": history,
    }


def eigsh(setting: Setting) -> dict[str, Any]:
    """curvlinops and ARPACK, at a tolerance that just suffices; its own is relative to each |λ|."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh as arpack

    start = time.perf_counter()
    linear = HessianLinearOperator(
        setting.model,
        nn.CrossEntropyLoss(),
        setting.weights,
        setting.data,
        check_deterministic=False,
    ).to_scipy()
    count = 0
    product = linear._matvec

    def counted(vector: Any) -> Any:
        nonlocal count
        count += 1
        return product(vector)

    linear._matvec = counted
    _, vectors = arpack(linear, k=K, which="LA", tol=1e-3)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "products": count,
        "residuals": setting.residuals(torch.from_numpy(vectors).float().flip(1)),
    }


def eigenthings(setting: Setting, steps: int) -> dict[str, Any]:
    from hessian_eigenthings import HessianOperator, supervised_loss
    from hessian_eigenthings.algorithms.lanczos import lanczos as theirs

    start = time.perf_counter()
    operator = HessianOperator(setting.model, setting.data, supervised_loss(nn.CrossEntropyLoss()))
    found = theirs(operator, k=K, max_iter=steps, which="LA", reorthogonalize=True, seed=0)
    seconds = time.perf_counter() - start
    residuals = setting.residuals(found.eigenvectors.T)
    return {"seconds": seconds, "products": steps, "residuals": residuals}


def steps_of_eigenthings(setting: Setting) -> int:
    """The fewest steps with which it reaches the goal, found with our faster products."""
    from hessian_eigenthings.algorithms.lanczos import lanczos as theirs

    class Fast:
        size, dtype, device = setting.judge.shape[0], torch.float32, torch.device("cpu")

        @staticmethod
        def matvec(vector: Tensor) -> Tensor:
            return setting.judge @ vector

    steps = SHIFT
    while True:
        found = theirs(Fast, k=K, max_iter=steps, which="LA", reorthogonalize=True, seed=0)  # type: ignore[arg-type]
        if float((found.residuals / found.eigenvalues.max()).max()) <= GOAL:
            return steps
        steps += 1 if steps < SHIFT + 2 else 2


def pyhessian(setting: Setting) -> dict[str, Any]:
    """Its power iteration at its defaults; when each pair was done."""
    from pyhessian import hessian

    module = sys.modules["pyhessian.hessian"]
    orthogonalise = module.orthnormal
    moments: dict[int, float] = {}
    calls = 0

    def noted(vector: Any, known: list[Any]) -> Any:
        nonlocal calls
        calls += 1
        moments.setdefault(len(known), time.perf_counter() - start)
        return orthogonalise(vector, known)

    torch.manual_seed(0)
    start = time.perf_counter()
    module.orthnormal = noted  # type: ignore[attr-defined]
    try:
        peer = hessian(setting.model, nn.CrossEntropyLoss(), dataloader=setting.data, cuda=False)
        _, vectors = peer.eigenvalues(top_n=K)
    finally:
        module.orthnormal = orthogonalise  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start
    setting.model.zero_grad(set_to_none=True)
    flat = torch.stack([torch.cat([p.reshape(-1) for p in v]) for v in vectors], 1)
    return {
        "seconds": seconds,
        "products": calls,
        "residuals": setting.residuals(flat.detach()),
        "done": [moments.get(i + 1, seconds) for i in range(K)],
    }


def eigen(path: Path, rounds: int) -> dict[str, Any]:
    setting = Setting(path)
    contestants: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: ours(setting),
        "ours, not verified": lambda: ours(setting, verify=False),
        "curvlinops + eigsh": lambda: eigsh(setting),
    }
    steps = steps_of_eigenthings(setting)
    contestants["hessian-eigenthings"] = lambda: eigenthings(setting, steps)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, work in contestants.items():
            runs[name].append(work())
            print(turn, name, f"{runs[name][-1]['seconds']:.1f} s", flush=True)
    theirs = pyhessian(setting)
    print("PyHessian", f"{theirs['seconds']:.1f} s", flush=True)
    # Our time until every pair is at least as good as theirs, the best to the best.
    goals = sorted(theirs["residuals"])
    as_good = []
    for run in runs["ours"]:
        for h in run["history"]:
            mine = sorted(h["residuals"])
            if len(mine) == K and all(a <= b for a, b in zip(mine, goals, strict=True)):
                as_good.append(h["seconds"])
                break
    median = {name: statistics.median(r["seconds"] for r in found) for name, found in runs.items()}
    reached = statistics.median(r["reached"]["seconds"] for r in runs["ours"])
    return {
        "samples": SAMPLES,
        "seconds": median,
        "ours_to_goal": reached,
        "ours_as_good_as_pyhessian": statistics.median(as_good),
        "pyhessian": theirs,
        "ratios": {
            "PyHessian, our time to its residuals": theirs["seconds"] / statistics.median(as_good),
            "PyHessian, our time to the goal": theirs["seconds"] / reached,
            "PyHessian, verified": theirs["seconds"] / median["ours"],
            **{
                f"{name}, {what}": median[name] / mine
                for name in ("curvlinops + eigsh", "hessian-eigenthings")
                for what, mine in (
                    ("our time to the goal", reached),
                    ("not verified", median["ours, not verified"]),
                    ("verified", median["ours"]),
                )
            },
        },
        "runs": runs,
    }


MEMORY = """
import torch, landscape as ls
from landscape.memory import Peak

size = 8_000_000
values = torch.linspace(-0.1, 0.1, size)[:, None]
values[:10, 0] = torch.linspace(1, 2, 10)
A = ls.as_operator(
    lambda v: values.view(-1, *[1] * (v.ndim - 1)) * v, shape=(size, size), dtype=torch.float32
)
ls.eigenpairs(A, 2, tolerance=1e-1)
for tolerance in (1e-2, 1e-4, 1e-6):
    with Peak(A.device) as taken:
        pairs = ls.eigenpairs(A, 10, tolerance=tolerance)
    print(tolerance, taken.bytes / (4 * size), pairs.steps, pairs.complete)
"""


def memory(path: Path, rounds: int) -> dict[str, Any]:
    """Vectors in memory for ten eigenpairs of a cheap operator, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in run.stdout.splitlines()]
    return {
        "vectors": {tolerance: float(vectors) for tolerance, vectors, *_ in rows},
        "steps": {tolerance: int(steps) for tolerance, _, steps, _ in rows},
    }


def resume(path: Path, rounds: int) -> dict[str, Any]:
    """What it costs to be able to go on: the share of the time in which the state is written."""
    setting = Setting(path, 128)
    offer = checkpoint.Checkpoint.offer
    shares, writing = [], 0.0

    def timed(*arguments: Any, **options: Any) -> None:
        nonlocal writing
        start = time.perf_counter()
        offer(*arguments, **options)
        writing += time.perf_counter() - start

    H = ls.Hessian(setting.problem)
    ls.eigenpairs(H, K, tolerance=GOAL)  # traced once for all
    checkpoint.Checkpoint.offer = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(rounds):
                writing, start = 0.0, time.perf_counter()
                ls.eigenpairs(H, K, tolerance=GOAL, resume=Path(folder) / f"{turn}.pt")
                shares.append(writing / (time.perf_counter() - start))
    finally:
        checkpoint.Checkpoint.offer = offer  # type: ignore[method-assign]
    return {"share_of_time": statistics.median(shares), "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("parts", nargs="*", default=["eigen", "memory", "resume"])
    parser.add_argument("--json", type=Path, help="updated, part by part")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    for name in arguments.parts:
        found = {"eigen": eigen, "memory": memory, "resume": resume}[name](
            arguments.model, arguments.rounds
        )
        print(
            name,
            json.dumps(
                {k: v for k, v in found.items() if k not in ("runs", "pyhessian")}, indent=1
            ),
        )
        about = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {
                package: importlib.metadata.version(package)
                for package in (
                    "torch",
                    "scipy",
                    "pyhessian",
                    "hessian-eigenthings",
                    "curvlinops-for-pytorch",
                )
            },
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rounds": arguments.rounds,
        }
        report[name] = found | about
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
