"""What the inverse Fisher matrix costs, against M-FAC's recursion and against products one by one.

    python tests/benchmarks/inverse.py [setup block] [--json figures/data/inverse.json]

Works take turns in one process; the ratio is that of the medians.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import landscape as ls

SIZE, COUNT, VECTORS, DAMPING = 1_000_000, 256, 32, 1e-3
BARS = {"setup": 6.0, "block": 4.0}


def gradients() -> Tensor:
    return torch.randn(COUNT, SIZE, generator=torch.Generator().manual_seed(0))


def recursion(G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """v and q of M-FAC's static recursion, a gradient at a time, in the dtype of G."""
    m = len(G)
    v, q = torch.empty_like(G), torch.empty(m, dtype=G.dtype)
    v[0] = G[0] / damping
    q[0] = m + G[0] @ v[0]
    for i in range(1, m):
        weights = v[:i] @ G[i] / q[:i]
        torch.sub(G[i] / damping, weights @ v[:i], out=v[i])
        q[i] = m + G[i] @ v[i]
    return v, q


def setup(rounds: int) -> dict[str, Any]:
    """The first bar: everything the core needs before its first product, and the recursion's v and q."""
    G = gradients()
    found: dict[str, Any] = {}

    def ours() -> None:
        found["inverse"] = ls.InverseFisher.from_gradients(G, DAMPING)

    def theirs() -> None:
        found["v"], found["q"] = recursion(G, DAMPING)

    seconds = in_turns({"recursion": theirs, "ours": ours}, rounds)
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    theirs_x = x / DAMPING - (found["v"] @ x / found["q"]) @ found["v"]
    difference = (found["inverse"] @ x - theirs_x).norm() / theirs_x.norm()
    return ratio(seconds, "recursion", "ours") | {"difference_of_a_product": float(difference)}


def block(rounds: int) -> dict[str, Any]:
    """The second bar: 32 products at once, one by one, and one by one by the plain float32 formula."""
    G = gradients()
    inverse = ls.InverseFisher.from_gradients(G, DAMPING)
    vectors = torch.randn(SIZE, VECTORS, generator=torch.Generator().manual_seed(1))
    singles = list(vectors.T.contiguous())
    K = (G @ G.T).double() + COUNT * DAMPING * torch.eye(COUNT, dtype=torch.float64)
    factor = torch.linalg.cholesky(K)

    def plain() -> None:
        for x in singles:
            inner = torch.cholesky_solve((G @ x).double()[:, None], factor).float()
            (x - G.T @ inner[:, 0]) / DAMPING

    works = {
        "one by one": lambda: [inverse @ x for x in singles],
        "plain float32, one by one": plain,
        "at once": lambda: inverse @ vectors,
    }
    seconds = in_turns(works, rounds)
    at_once = statistics.median(seconds["at once"])
    against_plain = statistics.median(seconds["plain float32, one by one"]) / at_once
    return ratio(seconds, "one by one", "at once") | {"plain_float32_over_ours": against_plain}


def in_turns(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every work in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "medians": medians, "times_faster": medians[slow] / medians[fast]}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"setup": setup, "block": block}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="updated, part by part")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.parts:
        about = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "load_before": os.getloadavg()[0],
            "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rounds": arguments.rounds,
            "bar": BARS.get(name),
        }
        found = PARTS[name](arguments.rounds) | about
        print(name, json.dumps(found, indent=1), flush=True)
        if arguments.json:
            report = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            report[name] = found
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
