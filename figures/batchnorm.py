"""Random axes, Hessian axes, and what batch normalisation does to both: the ResNet-20 demo.

python figures/batchnorm.py --measure model.pt     # surfaces, some minutes, into figures/data
python figures/batchnorm.py                        # the figure from them
"""

import argparse
import json
from pathlib import Path

import landscape as ls
from landscape.estimators.loss_at import NORM_STATS
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", metavar="MODEL")
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
