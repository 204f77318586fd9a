"""How numbers are written for people: digits that the error allows, powers of ten, counts."""

import math


def with_error(value: float | None, error: float | None) -> str:
    """Write a value with its standard error to two digits; None or NaN says "unknown".

    An error of less than a hundred-thousandth of the value is written on its own, to one digit.

    >>> with_error(17.9412, 0.3123), with_error(-2.5e7, 3e5), with_error(4.0, None)
    ('17.94 ± 0.31', '(−2.500 ± 0.030) × 10⁷', '4 (error unknown)')
    >>> with_error(0.20448012, 2.2e-7), with_error(3.0, 0.0)
    ('0.2044801 ± 2 × 10⁻⁷', '3 ± 0')
    """
    if value is None or math.isnan(value):
        return "unknown"
    if error is None or math.isnan(error):
        return f"{number(value, 5)} (error unknown)"
    if error == 0:
        return f"{number(value, 6)} ± 0"
    exponent = exponent_of(max(abs(value), error))
    small = error < 1e-5 * abs(value)
    places = (0 if small else 1) - math.floor(math.log10(error / 10.0**exponent))
    scaled = value / 10.0**exponent
    digits = f"{scaled:.10g}" if places > 9 else f"{scaled:.{max(0, places)}f}"
    digits = digits.replace("-", "−")
    if small:
        return (digits if exponent == 0 else f"{digits} × {power(exponent)}") + (
            f" ± {number(error, 1)}"
        )
    text = f"{digits} ± {error / 10.0**exponent:.{max(0, places)}f}"
    return text if exponent == 0 else f"({text}) × {power(exponent)}"


def count(things: int, name: str, several: str | None = None) -> str:
    """Write how many things there are.

    >>> count(1, "probe"), count(2500, "parameter"), count(2, "batch", "batches")
    ('1 probe', '2,500 parameters', '2 batches')
    """
    return f"{things:,} {name if things == 1 else several or name + 's'}"


def number(value: float, digits: int = 2) -> str:
    """Write a number to some significant digits (2 by default), with a power of ten where it helps.

    >>> number(0.0251), number(25100.0), number(-2.5e-8), number(9.6e-8, 1)
    ('0.025', '25000', '−2.5 × 10⁻⁸', '1 × 10⁻⁷')
    >>> number(math.nan), number(-math.inf)
    ('nan', '−inf')
    """
    if not math.isfinite(value):
        return f"{value}".replace("-", "−")
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = exponent_of(rounded)
    text = f"{rounded / 10.0**exponent:.6g}".replace("-", "−")
    return text if exponent == 0 else f"{text} × {power(exponent)}"


def exponent_of(value: float) -> int:
    """Give the power of ten to write behind a number: 0 from 0.001 up to 100 000, and for 0."""
    exponent = math.floor(math.log10(abs(value))) if value else 0
    return 0 if -3 <= exponent < 5 else exponent


def power(exponent: int) -> str:
    """Write a power of ten in plain Unicode: 10⁻³."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float) -> str:
    """Write a time.

    >>> duration(0.156), duration(3.21), duration(200), duration(9000)
    ('160 ms', '3.2 s', '3 min 20 s', '2 h 30 min')
    """
    if seconds < 1:
        return f"{number(1000 * seconds)} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def memory(count: float) -> str:
    """Write a number of bytes.

    >>> memory(999), memory(433_000_000), memory(2.5e9)
    ('999 B', '433 MB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
