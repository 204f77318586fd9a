"""How numbers are written for people."""

import math


def uncertain(value: float, error: float) -> str:
    """A value with as many digits as its error allows: `12.346 ± 0.012`."""
    if not math.isfinite(error):
        return f"{value:.4g}"
    if error <= 0 or value == 0 and error == 0:
        return f"{value:.6g} ± 0"
    scale = math.floor(math.log10(max(abs(value), error)))
    digits = 1 - math.floor(math.log10(error))  # two significant digits of the error
    if -3 <= scale <= 5:
        places = min(max(0, digits), 9)
        return (
            f"{value:.{places}f} ± {error:.{places}f}"
            if digits <= 9
            else f"{value:.9f} ± {error:.1g}"
        )
    mantissa, spread = value / 10.0**scale, error / 10.0**scale
    places = min(max(0, digits + scale), 9)
    return f"({mantissa:.{places}f} ± {spread:.{places}f})e{scale:+03d}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{count:.1f} {unit}"
