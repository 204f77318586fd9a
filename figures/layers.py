"""The spectra of the layers of the cnn demo, and the norms between them, from its saved result.

landscape demo cnn -o cnn.pt && landscape spectrum cnn.pt --per-layer --json figures/data/layers_cnn.json
python figures/layers.py
"""

from pathlib import Path

import landscape as ls

HERE = Path(__file__).parent


def main() -> None:
    layers = ls.Layers.load(HERE / "data" / "layers_cnn.json")
    for ending in ("pdf", "png"):
        layers.plot(HERE / f"layers.{ending}")


if __name__ == "__main__":
    main()
