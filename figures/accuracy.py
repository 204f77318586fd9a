"""Write the accuracy table of the README from figures/data/accuracy.json."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADER = (
    "| demo | parameters | samples | λ₁ ± residual | largest relative error of the top five | "
    "trace ± s.e. | oracle | difference, in s.e. |\n|---|---|---|---|---|---|---|---|\n"
)


def main() -> None:
    report = json.loads((ROOT / "figures/data/accuracy.json").read_text())
    lines = []
    for row in report["rows"]:
        first, trace, oracle = row["eigenvalues"][0], row["trace"], row["oracle"]["trace"]
        error = f" ± {oracle['standard_error']:.3g}" if oracle["standard_error"] else " (exact)"
        lines.append(
            f"| {row['demo']} | {row['parameters']:,} | {row['samples']:,} "
            f"| {first['value']:.6g} ± {first['residual']:.0e} | {max(row['relative_errors']):.0e} "
            f"| {trace['value']:.4g} ± {trace['standard_error']:.2g} "
            f"| {oracle['value']:.4g}{error} | {row['trace_deviation_in_standard_errors']:+.1f} |"
        )
    table = HEADER + "\n".join(lines)
    machine = f"{report['machine']}; torch {report['versions']['torch']}"
    readme = ROOT / "README.md"
    pattern = r"(<!-- accuracy table.*?-->\n).*?(<!-- end -->)"
    text = re.sub(
        pattern,
        lambda m: f"{m[1]}{table}\n\n({machine}.)\n{m[2]}",
        readme.read_text(),
        flags=re.DOTALL,
    )
    readme.write_text(text)


if __name__ == "__main__":
    main()
