"""Surfaces of the cnn demo: a map and a relief along Hessian axes, a path of training, three batch sizes.

python figures/surface_data.py
python figures/surface.py
"""

import json
from pathlib import Path

import landscape as ls

HERE = Path(__file__).parent
BATCH_SIZES = (16, 64, 512)


def main() -> None:
    hessian = ls.Surface.load(HERE / "data" / "surface_hessian.json")
    path = ls.Surface.load(HERE / "data" / "surface_trajectory.json")
    compared = [
        json.loads((HERE / "data" / f"surface_batch_{size}.json").read_text())
        for size in BATCH_SIZES
    ]
    for ending in ("pdf", "png"):
        hessian.plot(HERE / f"surface_hessian.{ending}")
        hessian.plot(HERE / f"surface_relief.{ending}", kind="3d")
        path.plot(HERE / f"surface_trajectory.{ending}")
        ls.plot_surfaces(
            compared,
            HERE / f"surface_compare.{ending}",
            names=[f"batch size {size}" for size in BATCH_SIZES],
        )
    path.plot(HERE / "surface_trajectory.gif")


if __name__ == "__main__":
    main()
