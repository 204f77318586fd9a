"""Write the tables of products in the README from figures/data/products.json."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NAMES = {"mlp": "MLP", "gpt": "GPT", "resnet": "ResNet-20"}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def products(report: dict[str, Any]) -> str:
    problems = report["problems"]
    labels = [label for label in problems[0]["rows"] if label != "gradient"]
    rows = [
        [label, *(f"{p['rows'][label]['gradients_per_vector']:.2f}" for p in problems)]
        for label in labels
    ]
    ratios = [f"{p['best_peer_over_ours']:.2f}" for p in problems]
    rows.append(["best peer over Hessian, split", *ratios])
    return table(["", *(NAMES[p["problem"]] for p in problems)], rows)


def steps(report: dict[str, Any]) -> str:
    found = report["lanczos_steps"]
    rows = []
    for part in ("product", "recurrence"):
        spent = [step["seconds"][part] / sum(step["seconds"].values()) for step in found]
        rows.append([part, *(f"{100 * share:.0f} %" for share in spent)])
    for kind in found[0]["shares"]:
        rows.append([f"– {kind}", *(f"{100 * step['shares'][kind]:.0f} %" for step in found)])
    outside = [1 - sum(step["shares"].values()) for step in found]
    rows.append(["– Python and dispatch", *(f"{100 * share:.0f} %" for share in outside)])
    names = [NAMES[step["problem"]] for step in found]
    return table([f"one Lanczos step, {found[0]['basis']} vectors in the basis", *names], rows)


def density(about: dict[str, Any]) -> str:
    def of(which: str, key: str) -> float:
        return statistics.median(run[key] for run in about["runs"] if run["which"] == which)

    count = sum(run["which"] == "ours" for run in about["runs"])
    time, memory = (
        [of(which, key) for which in ("ours", "PyHessian")]
        for key in ("seconds", "bytes_above_gradient")
    )
    few, many = about["peak_bytes_by_steps"].values()
    return (
        f"A whole density of ResNet-20 ({about['probes']} probes, {about['steps']} steps, four batches of "
        f"{about['batch']}), medians of {count} alternating runs in processes of their own: {time[0]:.0f} s "
        f"against {time[1]:.0f} s for PyHessian's `density`, {time[1] / time[0]:.2f} times faster, and "
        f"{memory[0] / 2**20:.0f} MiB above the peak of a gradient against {memory[1] / 2**20:.0f} MiB. From 20 "
        f"to 200 steps the peak of the process changes by {100 * (many / few - 1):+.1f} %."
    )


def main() -> None:
    report = json.loads((ROOT / "figures/data/products.json").read_text())
    versions = ", ".join(
        f"{name} {version or 'absent'}" for name, version in report["versions"].items()
    )
    parts = [products(report), steps(report), density(report["slq"])]
    parts.append(f"({report['machine']}; {versions}; {report['date'][:10]}.)")
    readme = ROOT / "README.md"
    pattern = r"(<!-- products table.*?-->\n).*?(<!-- end -->)"
    new = "\n\n".join(parts)
    text = re.sub(pattern, lambda m: f"{m[1]}{new}\n{m[2]}", readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main()
