"""Files and names become live objects; the only room that reads untrusted files."""

from collections.abc import Callable

Say = Callable[[str], None]  # told, in a sentence, of every choice made for the user


def silent(sentence: str) -> None:
    """Tell nobody."""
