"""How pictures are written: the same bytes for the same result, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.results import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = ".html"
FILM = ".gif"
_UNDATED: dict[str, dict[str, Any]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


def require_ending(path: str | Path, *, page: bool = False, film: bool = False) -> None:
    """Refuse a picture of a kind that cannot be drawn.

    Args:
        path: of the picture.
        page: whether there is an interactive page of it too.
        film: whether there is a film of it too.

    Raises:
        InputError: the ending is not among those.
    """
    known = [*_UNDATED, *([PAGE] if page else []), *([FILM] if film else [])]
    if Path(path).suffix.lower() not in known:
        raise InputError(
            f"cannot draw to {str(path)!r}: its ending must be one of {', '.join(known)}"
        )


def write_figure(
    figure: "Figure", path: str | Path | None, page: Callable[[], str] | None = None
) -> None:
    """Settle the layout of a finished figure, and write it where it is to go.

    Args:
        figure: drawn, and still inside `publication`, whose settings the layout needs.
        path: None to write nothing.
        page: makes the interactive page that is written instead where the ending is .html.
    """
    figure.draw_without_rendering()
    if path is None:
        return
    ending = Path(path).suffix.lower()
    with atomic(path) as temporary:
        if ending == PAGE and page is not None:
            temporary.write_text(page(), encoding="utf-8")
        else:
            figure.savefig(temporary, format=ending[1:], metadata=_UNDATED[ending])
