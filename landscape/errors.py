"""The three ways in which `landscape` says no: each carries the exit code of the command line."""


class LandscapeError(Exception):
    """A failure that a person can act on; its message is one sentence that says what to do."""

    exit_code = 1


class InputError(LandscapeError, ValueError):
    """The model, data, loss or an option is wrong (exit code 2)."""

    exit_code = 2


class UntrustedResult(LandscapeError, ArithmeticError):
    """A number was computed that may not be trusted (exit code 3)."""

    exit_code = 3
