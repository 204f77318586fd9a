"""Where results go: checked before the work begins, so that a typing error costs no hours."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from landscape.errors import InputError, UntrustedResult

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> "Console":
    """Where text for people goes; names in it, such as digits:train:, are left as they are."""
    from rich.console import Console

    return Console(stderr=stderr, emoji=False, highlight=False)


def printable(text: object) -> str:
    """Text without control characters: a name in a file must not move the cursor or forge a line."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def one_line(text: object) -> str:
    """The same without line breaks."""
    return printable(text).replace("\n", "\\n")


def require_folder(path: Path) -> None:
    """Refuse a path that cannot be written.

    Raises:
        InputError: the folder is missing, or the path is a folder.
    """
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: name a file")
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} does not exist: make it first")


def require_new(path: Path, force: bool) -> None:
    """Refuse to overwrite a file unasked."""
    if path.exists() and not force:
        raise InputError(
            f"{str(path)!r} exists already: choose another -o, or overwrite with --force"
        )


def require_other(path: Path, model: Path) -> None:
    """Refuse to write a result over the model."""
    if path.resolve() == model.resolve():
        raise InputError(f"{str(path)!r} is the model itself: choose another file for the result")


def require_outputs(model: Path, *paths: Path | None) -> list[Path]:
    """The files that will be written: each can be, none is the model or another of them."""
    files = [path for path in paths if path is not None and str(path) != "-"]
    for path in files:
        require_folder(path)
        require_other(path, model)
    for i, path in enumerate(files):
        if path.resolve() in [other.resolve() for other in files[:i]]:
            raise InputError(
                f"two results would both be written to {str(path)!r}: choose two files"
            )
    return files


class Result(Protocol):
    """What a command measured."""

    @property
    def failures(self) -> list[str]: ...

    def to_dict(self) -> dict[str, Any]: ...


def deliver(
    result: Result,
    json_file: Path | None,
    show: Callable[["Console"], None],
    *,
    written: Sequence[Path] = (),
    write: Callable[[], object] | None = None,
    resume: Path | None = None,
) -> None:
    """Write the numbers, then what else is to be written, forget the state, show it all.

    The numbers come first: drawing may fail for reasons of its own.

    Args:
        result: what was measured.
        json_file: as `--json` says.
        show: prints the result.
        written: files to name at the end.
        write: makes the other files.
        resume: the state of the work, which is over.

    Raises:
        UntrustedResult: something in it could not be trusted; everything was written and shown.
    """
    from rich.markup import escape

    from landscape.checkpoint import remove

    write_json(result.to_dict(), json_file)
    if write is not None:
        write()
    if resume is not None:
        remove(resume)
    screen = console(stderr=str(json_file) == "-")
    show(screen)
    for path in written:
        screen.print(f"wrote {escape(str(path))}", soft_wrap=True)
    if result.failures:
        raise UntrustedResult("; ".join(result.failures))


def write_json(result: dict[str, Any], path: Path | None) -> None:
    """Write the numbers where `--json` says: to a file, whole or not at all; to stdout for -; or not."""
    from landscape.results import atomic, to_json

    if str(path) == "-":
        print(to_json(result))
    elif path is not None:
        with atomic(path) as temporary:
            temporary.write_text(to_json(result))
