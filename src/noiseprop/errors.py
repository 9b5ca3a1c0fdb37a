"""The errors raised on purpose: one sentence that says what came, what was expected and what to do next."""


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
