"""Write the accuracy table of the README from figures/data/accuracy.json."""

from tables import load, table, write

HEADER = [
    "demo",
    "parameters",
    "samples",
    "λ₁ ± residual",
    "largest relative error of the top five",
]
HEADER += ["trace ± s.e.", "oracle", "difference, in s.e."]


def main() -> None:
    report = load("accuracy")
    rows = []
    for row in report["rows"]:
        first, trace, oracle = row["eigenvalues"][0], row["trace"], row["oracle"]["trace"]
        error = f" ± {oracle['standard_error']:.3g}" if oracle["standard_error"] else " (exact)"
        rows.append(
            [
                row["demo"],
                f"{row['parameters']:,}",
                f"{row['samples']:,}",
                f"{first['value']:.6g} ± {first['residual']:.0e}",
                f"{max(row['relative_errors']):.0e}",
                f"{trace['value']:.4g} ± {trace['standard_error']:.2g}",
                f"{oracle['value']:.4g}{error}",
                f"{row['trace_deviation_in_standard_errors']:+.1f}",
            ]
        )
    machine = f"{report['machine']}; torch {report['versions']['torch']}"
    write("accuracy", f"{table(HEADER, rows)}\n\n({machine}.)")


if __name__ == "__main__":
    main()
