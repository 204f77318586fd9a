"""The README's picture: the Hessian spectrum of the cnn demo, from its saved result.

landscape demo cnn -o cnn.pt && landscape spectrum cnn.pt --json figures/data/spectrum_cnn.json
python figures/spectrum.py
"""

from pathlib import Path

import landscape as ls

HERE = Path(__file__).parent


def main() -> None:
    spectrum = ls.Spectrum.load(HERE / "data" / "spectrum_cnn.json")
    for ending in ("pdf", "png"):
        spectrum.plot(HERE / f"spectrum.{ending}")


if __name__ == "__main__":
    main()
