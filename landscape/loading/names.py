"""`package.module:callable` names: imported only because a person typed them."""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landscape.errors import InputError


def import_callable(name: str) -> Callable[..., Any]:
    """The callable that `package.module:callable` names, from the current folder or the environment.

    Raises:
        InputError: the name has another form, or nothing is found under it.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{name!r} is not of the form package.module:callable")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name!r} of {name!r} from the current folder or the environment: "
            f"{error}"
        ) from error
    finally:
        sys.path.remove(here)
    found = getattr(module, attribute, None)
    if not callable(found):
        close = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"{module_name!r} ({module.__file__}) has no callable {attribute!r}{hint}")
    return found  # type: ignore[no-any-return]
