"""Options that several commands share, with one name and one default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg


def describe_default(what: str, metavar: str) -> Any:
    """Return how help shows an option whose default depends on the run."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {what})")


Flag = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]
Json = Flag
GranularityName = Literal["neuron", "channel", "layer"]

RunFolder = Annotated[Positional[Path], arg(metavar="RUN")]
Trusted = Annotated[tuple[str, ...], describe_default("none", "NAME ...")]
OwnData = Annotated[str | None, describe_default("where they were", "SOURCE")]
Device = Annotated[str, arg(metavar="NAME")]
DataDir = Annotated[Path | None, describe_default("$NOISEPROP_DATA, else downloaded once", "DIR")]


def check_initial_sigma(init: float | str | None) -> None:
    """Raise an error unless an initial sigma is at least 0 and finite, or a name."""
    from math import isfinite

    from noiseprop.errors import InputError

    if isinstance(init, float) and not (isfinite(init) and init >= 0):
        raise InputError(f"--init must be at least 0 and finite, or normal, got {init:g}; it is a standard deviation")
