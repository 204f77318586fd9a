"""Random axes, Hessian axes, and what batch normalisation does to both: the ResNet-20 demo.

python figures/batchnorm.py --measure model.pt     # surfaces, some minutes, into figures/data
python figures/batchnorm.py                        # the figure from them
"""

import argparse
import json
from pathlib import Path

from tables import ROOT, table, write

import landscape as ls
from landscape.estimators.loss_at import NORM_STATS
from landscape.numerals import number
from landscape.results import jsonable

HERE = Path(__file__).parent
DATA = HERE / "data" / "batchnorm.json"
POINTS = 31
SAMPLES = 1_000


def measure(model: str) -> None:
    """Surfaces over the same ranges with each kind of statistics."""
    problem = ls.load_problem(model, limit=SAMPLES)
    chosen = {"hessian": ls.hessian_axes(problem, (1, 2)), "random": ls.random_axes(problem)}
    found = []
    for name, axes in chosen.items():
        extent: object = "auto"
        for stats in NORM_STATS:
            surface = ls.surface(
                problem,
                axes,
                points=POINTS,
                extent=extent,  # type: ignore[arg-type]
                norm_stats=stats,
                adaptive=True,
                progress=lambda phase, done, of, what=(name, stats): (
                    print(*what, done, flush=True) if done % 20 == 0 else None
                ),
            )
            extent = [(float(points[0]), float(points[-1])) for points in surface.grid]
            found.append(surface.to_dict())
    DATA.write_text(json.dumps(jsonable(found)) + "\n")


def draw() -> None:
    """Three maps along each kind of axes, and the table of their curvatures."""
    found = json.loads(DATA.read_text())
    rows = []
    for kind in ("hessian", "random"):
        surfaces = [surface for surface in found if surface["kind"] == kind]
        names = [surface["norm_stats"] for surface in surfaces]
        for ending in ("pdf", "png"):
            ls.plot_surfaces(surfaces, HERE / f"batchnorm_{kind}.{ending}", names=names)
        for i, axis in enumerate(surfaces[0]["axes"]):
            bends = [surface["checks"]["curvature_at_scale"][i] for surface in surfaces]
            rows.append(
                [
                    f"{kind} axes: {axis['name']}",
                    *(number(bend, 3) for bend in bends),
                    f"{bends[0] / bends[1]:.1f}",
                ]
            )
    header = ["curvature along", *NORM_STATS, "running / batch"]
    write("batch normalisation", table(header, rows), ROOT / "docs/landscapes.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", metavar="MODEL")
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
    else:
        draw()
