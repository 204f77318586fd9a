"""Influence against training anew: leaving samples out one by one, and in random halves.

python tests/benchmarks/influence.py figures/data/influence.json

Leave one out: logistic regression on breast-cancer with an L2 penalty, whose optimum is unique, found by
Newton's method to machine precision with and without each training sample; the change of the loss of test
samples against its prediction (Koh & Liang 2017, arXiv:1703.04730).

Random halves: the linear datamodelling score (Park et al. 2023, arXiv:2303.14186) on digits: over 40 random
halves of the training data, the rank correlation between a query's loss after training on the half and the
sum of its effects, averaged over queries.
"""

import json
import platform
import sys
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

import landscape as ls
from landscape.demos.data import load_data

Array = NDArray[np.float64]
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1)
HALVES, QUERIES = 40, 100


def newton(x: Array, sign: Array, penalty: float, count: int, theta: Array) -> tuple[Array, Array]:
    """The θ that minimises Σ log(1 + exp(−s xᵀθ)) / count + ½ penalty ‖θ‖², and the Hessian there."""
    for _ in range(60):
        wrong = 1 / (1 + np.exp(sign * (x @ theta)))
        gradient = -(x.T @ (sign * wrong)) / count + penalty * theta
        hessian = (x.T * (wrong * (1 - wrong))) @ x / count + penalty * np.eye(len(theta))
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step
        if np.linalg.norm(step) <= 1e-13 * np.linalg.norm(theta):
            return theta, hessian
    raise RuntimeError("Newton's method has not converged")


def leave_one_out(penalty: float, *, shown: int = 0) -> dict[str, Any]:
    """Predicted and actual changes of the test losses; the actual ones by NumPy alone."""
    x, y = load_data("breast-cancer:train")
    tx, ty = load_data("breast-cancer:test")
    X, TX = (np.c_[part.double().numpy(), np.ones(len(part))] for part in (x, tx))
    sign, tsign = (2.0 * part.numpy() - 1 for part in (y, ty))
    count = len(X)

    def losses(theta: Array) -> Array:
        return np.logaddexp(0, -tsign * (TX @ theta))

    begun = time.perf_counter()
    whole, hessian = newton(X, sign, penalty, count, np.zeros(X.shape[1]))
    base = losses(whole)
    actual = np.zeros((len(tx), count))
    for i in range(count):
        kept = np.arange(count) != i
        actual[:, i] = losses(newton(X[kept], sign[kept], penalty, count, whole)[0]) - base
    training = time.perf_counter() - begun
    model = nn.Linear(x.shape[1], 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(whole[None, :-1]))
        model.bias.copy_(torch.from_numpy(whole[-1:]))
    problem = ls.Problem(model, "bce_with_logits", (x.double(), y[:, None].double()))
    begun = time.perf_counter()
    found = ls.influence(
        problem,
        range(len(tx)),
        data=(tx.double(), ty[:, None].double()),
        damping=penalty,
        tolerance=1e-10,
    )
    seconds = time.perf_counter() - begun
    assert not found.failures, found.failures
    predicted = np.stack([query.effects for query in found.queries])
    # Of one query; the losses of some are zero to the last bit, with and without any sample.
    single = [
        float(pearsonr(p, a)[0])
        for p, a in zip(predicted, actual, strict=True)
        if np.ptp(a) > 1e-12
    ]
    report: dict[str, Any] = {
        "penalty": penalty,
        "samples": count,
        "queries": len(tx),
        "accuracy": float((tsign * (TX @ whole) > 0).mean()),
        "pearson": float(pearsonr(predicted.flatten(), actual.flatten())[0]),
        "spearman": float(spearmanr(predicted.flatten(), actual.flatten())[0]),
        "slope": float((predicted * actual).sum() / (predicted**2).sum()),
        "pearson_per_query": {"least": min(single), "median": float(np.median(single))},
        "pearson_of_one_newton_step": float(
            pearsonr(_newton_step(X, sign, hessian, TX, tsign, whole).flatten(), actual.flatten())[
                0
            ]
        ),
        "seconds": {"training anew": training, "influence": seconds},
        "products": found.cost.products,
    }
    if shown:  # some queries with the larger losses are enough for a picture
        chosen = np.argsort(base)[(np.linspace(0.7, 1.0, shown) * (len(tx) - 1)).astype(int)]
        report["predicted"] = [[float(f"{v:.4g}") for v in row] for row in predicted[chosen]]
        report["actual"] = [[float(f"{v:.4g}") for v in row] for row in actual[chosen]]
    return report


def _newton_step(
    x: Array, sign: Array, hessian: Array, tx: Array, tsign: Array, theta: Array
) -> Array:
    """The changes if the sample's own curvature were taken out of the matrix: one Newton step."""
    wrong, twrong = (1 / (1 + np.exp(s * (z @ theta))) for s, z in ((sign, x), (tsign, tx)))
    gradients, queries = -(x.T * (sign * wrong)).T, -(tx.T * (tsign * twrong)).T
    found = np.zeros((len(tx), len(x)))
    for i, row in enumerate(x):
        own = wrong[i] * (1 - wrong[i]) * np.outer(row, row) / len(x)
        found[:, i] = queries @ np.linalg.solve(hessian - own, gradients[i]) / len(x)
    return found


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()


def trained(model: nn.Module, x: Tensor, y: Tensor, penalty: float) -> nn.Module:
    """To a minimum of the mean cross-entropy plus ½ penalty ‖θ‖², by L-BFGS on all the data."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=400,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        square = sum(p.square().sum() for p in model.parameters())
        loss = F.cross_entropy(model(x), y) + penalty / 2 * square
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def halves(name: str, make: Any, penalty: float, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The linear datamodelling score of several ways to compute effects, for one kind of model."""
    tx, ty = (part[:QUERIES] for part in load_data("digits:test"))
    tx = tx.double()
    begun = time.perf_counter()
    model = trained(make(0), x, y, penalty)
    generator = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(len(x), generator=generator)[: len(x) // 2] for _ in range(HALVES)]
    after = []
    for i, subset in enumerate(subsets):
        half = trained(make(i + 1), x[subset], y[subset], penalty)
        with torch.no_grad():
            after.append(F.cross_entropy(half(tx), ty, reduction="none").numpy())
    training = time.perf_counter() - begun
    problem = ls.Problem(model, "cross_entropy", (x, y))
    rows = []
    inverse = ls.InverseFisher(problem, len(x), penalty)
    for label, operator in (
        ("Gauss–Newton", "gauss-newton"),
        ("Hessian", "hessian"),
        ("inverse empirical Fisher, M-FAC", inverse),
    ):
        begun = time.perf_counter()
        found = ls.influence(
            problem,
            range(QUERIES),
            data=(tx, ty),
            operator=operator,
            damping=penalty,
            tolerance=1e-4,
        )
        seconds = time.perf_counter() - begun
        scores = []
        for q, query in enumerate(found.queries):
            left_out = np.ones((HALVES, len(x)), bool)
            for s, subset in enumerate(subsets):
                left_out[s, subset.numpy()] = False
            predicted = left_out @ query.effects
            scores.append(float(spearmanr(predicted, [losses[q] for losses in after])[0]))
        rows.append(
            {
                "effects": label,
                "score": float(np.mean(scores)),
                "standard_error": float(np.std(scores, ddof=1) / len(scores) ** 0.5),
                "seconds": seconds,
                "failures": len(found.failures),
            }
        )
    with torch.no_grad():
        accuracy = float((model(tx).argmax(1) == ty).double().mean())
    return {
        "model": name,
        "parameters": problem.size,
        "penalty": penalty,
        "accuracy": accuracy,
        "halves": HALVES,
        "queries": QUERIES,
        "seconds_training": training,
        "rows": rows,
    }


def softmax(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()


def main(path: str) -> None:
    x, y = load_data("digits:train")
    x = x.double()
    rows = [
        leave_one_out(penalty, shown=4 if penalty in (0.01, 0.1) else 0) for penalty in PENALTIES
    ]
    report = {
        "leave_one_out": rows,
        "datamodelling": [
            halves("softmax regression", softmax, 1e-3, x, y),
            halves("one hidden layer of 16", network, 1e-3, x, y),
        ],
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with open(path, "w") as file:
        file.write(json.dumps(report, indent=1) + "\n")
    brief = [{k: v for k, v in row.items() if k not in ("predicted", "actual")} for row in rows]
    print(json.dumps({"leave_one_out": brief, "datamodelling": report["datamodelling"]}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
