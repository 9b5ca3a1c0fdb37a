"""The errors raised on purpose: one sentence that says what came, what was expected and what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches


class NoisepropError(Exception):
    """Anything that a user can put right; commands print its sentence and exit with 1, without a traceback."""


class DataError(NoisepropError):
    """A data file is missing, damaged or not what its name says."""


class RunError(NoisepropError):
    """A run folder exists already, is damaged, or is not one."""


class InputError(NoisepropError, ValueError):
    """An argument is out of range or of the wrong shape."""


class NoisepropWarning(UserWarning):
    """Something that stops nothing but should be known; commands print its sentence."""


def near(name: str, names: Iterable[str]) -> str:
    """A hint at the known name that a misspelt one is nearest to, to stand behind a list of names; empty if none is.

    >>> near("mnist5k", ("mnist", "mnist-5k", "cifar10"))
    ' (did you mean mnist-5k?)'
    >>> near("MLPX", ("CNN",))
    ''
    """
    by_lower = {known.lower(): known for known in names}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""
