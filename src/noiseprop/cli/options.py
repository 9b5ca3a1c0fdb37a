"""Options that several commands share, so that they have one name and one default everywhere."""

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg


def default(what: str, metavar: str) -> Any:
    """How help shows an option whose default depends on the run."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {what})")


Flag = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]
Json = Flag
Granularity = Literal["neuron", "channel", "layer"]

Run = Annotated[Positional[Path], arg(metavar="RUN")]
Trusted = Annotated[tuple[str, ...], default("none", "NAME ...")]
OwnData = Annotated[str | None, default("where they were", "SOURCE")]
Device = Annotated[str, arg(metavar="NAME")]
DataDir = Annotated[Path | None, default("$NOISEPROP_DATA, else downloaded once", "DIR")]
