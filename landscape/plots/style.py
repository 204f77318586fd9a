"""The look of every picture: type, lines and colours for a paper, and how numbers are written."""

import math
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from landscape.numerals import power

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe & Ito (2008), "Color universal design": distinct under every common colour blindness.
BLACK, GREY, HAIRLINE = "#000000", "#595959", "#A6A6A6"
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"

COLUMN = 3.25
"""Width of one column of a two-column paper, in inches."""

# Liberation Sans has the widths of Arial, so a picture has the same layout with either.
FONTS = ("Arial", "Liberation Sans")

# How much smaller DejaVu Sans is set, to take the room of Arial.
NARROWER = 0.86

# In points.
TYPE: dict[Any, float] = {
    "font.size": 7,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6,
}

# Keys are Any because newer matplotlib types them as a list of literals, older as str.
SETTINGS: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.hspace": 0.0,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.dpi": 300,
    "savefig.dpi": 300,
    "legend.frameon": False,
    "mathtext.default": "regular",
    "lines.linewidth": 0.9,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.width": 0.35,
    "ytick.minor.width": 0.35,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    # TrueType (42), not Type 3: journals refuse Type 3, and TrueType text stays editable.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    # Outlines look the same where the font is missing; a fixed salt makes the file reproducible.
    "svg.fonttype": "path",
    "svg.hashsalt": "landscape",
}


@contextmanager
def publication(width: float = COLUMN, *, aspect: float = 0.72) -> Iterator[None]:
    """Draw and save figures in the size and type of a paper; the user's settings come back.

    The settings start from matplotlib's defaults, so a picture does not depend on the user's style.

    Args:
        width: figure width in inches (3.25, one column, by default).
        aspect: figure height as a share of its width (0.72 by default).

    Raises:
        ValueError: from matplotlib, when a figure is then made with a size that is not positive.

    >>> import matplotlib
    >>> with publication(7.0):
    ...     print(matplotlib.rcParams["figure.figsize"][0], matplotlib.rcParams["pdf.fonttype"])
    7.0 42
    """
    import matplotlib
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    # DejaVu Sans comes with matplotlib: it stands in where both are missing, and for rare glyphs. It is
    # wider, so it is set smaller, and every text keeps its room.
    found = [name for name in FONTS if name in installed][:1]
    scale = 1.0 if found else NARROWER
    sizes = {name: scale * points for name, points in TYPE.items()}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        family = {"font.family": [*found, "DejaVu Sans"]}
        size = {"figure.figsize": (width, aspect * width)}
        matplotlib.rcParams.update(SETTINGS | sizes | family | size)
        yield


def raised(label: str) -> str:
    """Turn Unicode superscripts into math text, which raises them as on a logarithmic axis."""
    plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    return re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"$^{{{found[0].translate(plain)}}}$", label)


def symlog_ticks(s: float, low: float, high: float) -> tuple[dict[float, str], list[float]]:
    """Place the ticks of an axis spaced by asinh(x / s): zero and powers of ten, and minor ticks.

    Args:
        s: where the axis turns from linear to logarithmic.
        low, high: the ends of the axis.

    Returns:
        The labels of the major ticks by place, and the places of the minor ticks.

    >>> symlog_ticks(0.005, -0.02, 1.5)[0]
    {0.0: '0', 0.01: '10⁻²', -0.01: '−10⁻²', 0.1: '10⁻¹', 1.0: '10⁰'}
    """
    # Closer to zero than 1.5 s, a label would touch the label of zero.
    first, last = math.ceil(math.log10(1.5 * s)), math.floor(math.log10(max(-low, high)))
    major, minor = {0.0: "0"}, []
    for exponent in range(first - 1, last + 1):
        for sign, mark in ((1, ""), (-1, "−")):
            steps = [sign * k * 10.0**exponent for k in range(1, 10)]
            minor += [x for x in steps if low <= x <= high and abs(x) >= s / 2]
            if exponent >= first and low <= steps[0] <= high:
                major[steps[0]] = mark + power(exponent)
    return major, minor


def wrap(text: "Text", figure: "Figure", *, share: float) -> float:
    """Break a text into lines that fit a share of the figure's width; give its height (inches)."""
    words, room = text.get_text(), share * figure.bbox.width
    # A fifth more letters than fit on average, then fewer until every line fits.
    most = int(1.2 * len(words) * room / max(text.get_window_extent().width, 1))
    for letters in range(max(most, 10), 9, -1):
        text.set_text(textwrap.fill(words, letters))
        if text.get_window_extent().width <= room:
            break
    return float(text.get_window_extent().height / figure.dpi)
