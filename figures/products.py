"""Write the tables of products in the README from figures/data/products.json."""

import statistics
from typing import Any

from tables import load, table, write

NAMES = {"mlp": "MLP", "gpt": "GPT", "resnet": "ResNet-20"}


def products(report: dict[str, Any]) -> str:
    labels = [label for label in report["mlp"]["rows"] if label != "gradient"]
    rows = [
        [label, *(f"{report[n]['rows'][label]['gradients_per_vector']:.2f}" for n in NAMES)]
        for label in labels
    ]
    ratios = [f"{report[name]['best_peer_over_ours']:.2f}" for name in NAMES]
    rows.append(["best peer over Hessian, split", *ratios])
    return table(["", *NAMES.values()], rows)


def steps(report: dict[str, Any]) -> str:
    found = [report[name]["lanczos_step"] for name in NAMES]
    rows = []
    for part in ("product", "recurrence"):
        spent = [step["seconds"][part] / sum(step["seconds"].values()) for step in found]
        rows.append([part, *(f"{100 * share:.0f} %" for share in spent)])
    for kind in found[0]["shares"]:
        rows.append([f"– {kind}", *(f"{100 * step['shares'][kind]:.0f} %" for step in found)])
    outside = [1 - sum(step["shares"].values()) for step in found]
    rows.append(["– Python and dispatch", *(f"{100 * share:.0f} %" for share in outside)])
    names = list(NAMES.values())
    return table([f"one Lanczos step, {found[0]['basis']} vectors in the basis", *names], rows)


def density(runs: list[dict[str, Any]]) -> str:
    def of(key: str, **about: Any) -> float:
        return statistics.median(r[key] for r in runs if about.items() <= r.items())

    whole = {"batch": 16, "probes": 8, "steps": 50}
    ours, theirs = (of("seconds", which=name, **whole) for name in ("ours", "PyHessian"))
    count = sum(whole.items() <= run.items() for run in runs) // 2
    memory = [
        [
            f"{of('bytes_above_gradient', which=name, batch=batch, **about) / 2**20:.0f} MiB"
            for name, about in (("ours", mine), ("PyHessian", his))
        ]
        for batch, mine, his in ((16, {"steps": 50}, {}), (64, {}, {}))
    ]
    few, many = (of("bytes", which="ours", batch=16, probes=2, steps=n) for n in (20, 200))
    return (
        f"A whole density of ResNet-20 (8 probes, 50 steps, four batches of 16, set-up included; medians of "
        f"{count} alternating runs in processes of their own) takes {ours:.0f} s, and {theirs:.0f} s by "
        f"PyHessian's `density`: {theirs / ours:.2f} times as long. Its peak of memory above that of a gradient "
        f"is {memory[0][0]} against {memory[0][1]}, with batches of 64 {memory[1][0]} against {memory[1][1]}; "
        f"of ours, {of('bytes', which='tracer') / 2**20:.0f} MiB is what torch loads to trace at all. From 20 to "
        f"200 steps it changes by {100 * (many / few - 1):+.1f} %."
    )


def main() -> None:
    report = load("products")
    about = report["mlp"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [products(report), steps(report), density(report["density"]["runs"])]
    parts.append(f"({about['machine']}; {versions}; {about['date'][:10]}.)")
    write("products", "\n\n".join(parts))


if __name__ == "__main__":
    main()
