"""Errors and warnings raised on purpose: one sentence with what was expected, what was found and the next step."""

from collections.abc import Iterable
from difflib import get_close_matches


class NoisepropError(Exception):
    """Base class of errors that a user can fix; commands print the message without a traceback and exit with 1."""


class DataError(NoisepropError):
    """Error for a data file that is missing, damaged or different from its name."""


class RunError(NoisepropError):
    """Error for a run folder that exists already, is damaged, or does not hold a run."""


class InputError(NoisepropError, ValueError):
    """Error for an argument that is out of range or of the wrong shape."""


class NoisepropWarning(UserWarning):
    """Warning that stops nothing but that a user should read; commands print its message."""


def suggest_name(name: str, names: Iterable[str]) -> str:
    """Return a hint at the known name closest to a misspelt one, to follow a list of names; empty if none is close.

    >>> suggest_name("mnist5k", ("mnist", "mnist-5k", "cifar10"))
    ' (did you mean mnist-5k?)'
    >>> suggest_name("MLPX", ("CNN",))
    ''
    """
    by_lower = {known.lower(): known for known in names}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""
