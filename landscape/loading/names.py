"""`package.module:callable` names: imported only because a person typed them."""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from landscape.errors import InputError, LandscapeError
from landscape.loading import Say, silent
from landscape.undisturbed import preserved_randomness


def import_callable(name: str, *, say: Say = silent) -> Callable[..., Any]:
    """The callable that `package.module:callable` or `folder/file.py:callable` names.

    Modules are looked for in the current folder, then in the environment.

    Args:
        name: the name that a person typed.
        say: told which file was run.

    Raises:
        InputError: the name has another form, or nothing is found under it.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{name!r} is not of the form package.module:callable")
    file = Path(module_name)
    folder = file.parent if file.suffix == ".py" and file.is_file() else None
    try:
        with current_folder(folder):
            module = importlib.import_module(file.stem if folder is not None else module_name)
    except Exception as error:  # a module of the user's may fail in any way
        raise InputError(
            f"cannot import {module_name!r} of {name!r} from the current folder or the environment: "
            f"{type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute, None)
    if found is not None and not callable(found):
        raise InputError(f"{name!r} is a {type(found).__name__}, which cannot be called")
    if found is None:
        close = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(
            f"{module_name!r} ({getattr(module, '__file__', 'built in')}) has no callable {attribute!r}{hint}"
        )
    say(f"ran {name} from {_source(module)}")
    return found  # type: ignore[no-any-return]


def call(name: str, arguments: Mapping[str, Any], *, say: Say = silent) -> Any:
    """Import a callable of the user's and call it; the random state of the process is left alone.

    Args:
        name: `package.module:callable`.
        arguments: its keyword arguments.
        say: told which file was run.

    Raises:
        InputError: it is not found, or it fails.
    """
    function = import_callable(name, say=say)
    try:
        # It may import its neighbours only now.
        with current_folder(), preserved_randomness(0):
            return function(**arguments)
    except LandscapeError:
        raise
    except Exception as error:  # a callable of the user's may fail in any way
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{name!r} failed: {type(error).__name__}: {reason}") from error


def _source(module: ModuleType) -> str:
    """The file of a module, relative to the current folder where it lies in it."""
    file = getattr(module, "__file__", None)
    if file is None:
        return "Python itself"
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def current_folder(other: Path | None = None) -> Iterator[None]:
    """The current folder, or another, on the import path, as for `python -m`."""
    saved = list(sys.path)
    sys.path.insert(0, str((other or Path.cwd()).resolve()))
    try:
        yield
    finally:
        sys.path[:] = saved
