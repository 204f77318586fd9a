"""Write the table of products in the README from figures/data/products.json."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMES = {"mlp": "MLP", "gpt": "GPT", "resnet": "ResNet-20"}


def main() -> None:
    report = json.loads((ROOT / "figures/data/products.json").read_text())
    problems = report["problems"]
    labels = list(dict.fromkeys(label for p in problems for label in p["rows"]))
    lines = ["| | " + " | ".join(NAMES[p["problem"]] for p in problems) + " |"]
    lines.append("|---" * (len(problems) + 1) + "|")
    for label in labels:
        if label == "gradient":
            continue
        cells = [p["rows"].get(label) for p in problems]
        lines.append(
            f"| {label} | "
            + " | ".join("" if c is None else f"{c['gradients_per_vector']:.2f}" for c in cells)
            + " |"
        )
    versions = ", ".join(
        f"{name} {version or 'absent'}" for name, version in report["versions"].items()
    )
    table = "\n".join(lines) + f"\n\n({report['machine']}; {versions}; {report['date'][:10]}.)"
    readme = ROOT / "README.md"
    pattern = r"(<!-- products table.*?-->\n).*?(<!-- end -->)"
    text = re.sub(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main()
