"""Write the tables of "How sure are we" in the README from the JSON files of its benchmarks."""

import statistics
from typing import Any

from tables import load, table, write


def eigenpairs(report: dict[str, Any]) -> str:
    """Time until ten pairs are certain, beside the peers."""
    found = report["eigen"]
    runs = found["runs"]
    mine = {"not verified": found["seconds"]["ours, not verified"]}
    mine |= {"verified": found["seconds"]["ours"]}

    def row(name: str, seconds: float, products: float, worst: float) -> list[str]:
        ratio = [f"{seconds / mine[key]:.1f}" for key in ("not verified", "verified")]
        return [name, f"{seconds:.0f} s", f"{products:.0f}", f"{worst:.0e}", *ratio]

    rows = []
    for name, what in runs.items():
        middle = statistics.median(run["products"] for run in what)
        worst = max(max(run["residuals"]) for run in what)
        rows.append(row(name, found["seconds"][name], middle, worst))
    theirs = found["pyhessian"]
    rows.append(row("PyHessian", theirs["seconds"], theirs["products"], max(theirs["residuals"])))
    until = found["ours_as_good_as_pyhessian"]
    return (
        table(["", "time", "products", "worst residual", "÷ ours", "÷ ours, verified"], rows)
        + f"\n\nOurs is at 10⁻⁴ after {found['ours_to_goal']:.0f} s, and as good as PyHessian's ten pairs after "
        f"{until:.0f} s, {theirs['seconds'] / until:.0f} times sooner. "
        f"{medians(found)} {memory(report)}"
    )


def medians(found: dict[str, Any]) -> str:
    versions = {k: v for k, v in found["versions"].items() if k != "scipy"}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"(Medians of {found['rounds']} interleaved runs in one process, PyHessian once in another; {found['machine']}; "
        f"{listed}; {found['date'][:10]}.)"
    )


def memory(report: dict[str, Any]) -> str:
    vectors = report["memory"]["vectors"]
    listed = ", ".join(f"{value:.0f} at {float(t):.0e}" for t, value in vectors.items())
    share = 100 * report["resume"]["share_of_time"]
    return (
        f"\n\nMemory for ten pairs of a matrix of order 8,000,000, in vectors of that length, by tolerance: "
        f"{listed}. Writing a resume file takes {share:.1f} % of the time."
    )


def products(report: dict[str, Any]) -> str:
    rows = [
        [r["spectrum"], f"{r['hutchinson']:,.0f}", f"{r['auto']:,.0f}", f"{r['ratio']:.1f}"]
        for r in report["products"]
    ]
    return table(["spectrum, order 2,000", "Hutchinson", "ls.trace", "ratio"], rows)


def coverage(report: dict[str, Any]) -> str:
    auto = [row for row in report["rows"] if row["method"].startswith("auto")]
    low, high = (100 * f(row["coverage"] for row in auto) for f in (min, max))
    kinds = len({row["problem"] for row in auto})
    return (
        f"Through `tolerance=` the 95 % interval held the trace in {low:.1f} to {high:.1f} % of {auto[0]['seeds']} "
        f"runs, on {kinds} kinds of matrices and at two tolerances each."
    )


def kills(report: dict[str, Any]) -> str:
    """The log of kills, in a sentence."""
    moments = report["kills"]
    later = sum(kill["resume_file_bytes"] > 0 for kill in moments)
    ends, different = len(report["finished"]), sum(count > 0 for count in report["finished"])
    same = "to the last bit" if not different else f"but for {different} of them"
    return (
        f"A `landscape spectrum` of {report['undisturbed_seconds']:.0f} s was killed by `kill -9` at {len(moments)} "
        f"random moments, {later} of them with a state on disk, and the same command given again: it came to its end "
        f"{ends} times, always with the numbers of an undisturbed run, {same}. "
        f"({report['machine'].replace(' 1 threads', ' one thread')}; torch {report['torch']}; {report['date'][:10]}.)"
    )


def main() -> None:
    measured = load("estimators")
    write("eigenpairs", eigenpairs(measured))
    write("kills", kills(load("kills")))
    covered = load("coverage")
    write("trace", products(covered) + "\n\n" + coverage(covered))


if __name__ == "__main__":
    main()
