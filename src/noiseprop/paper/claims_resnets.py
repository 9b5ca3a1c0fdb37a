"""The paper's claims about Tables 5 and 6, tested over training seeds or, where there is one, over images."""

from dataclasses import replace

from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.paper.claims import Claim, Comparison, compare
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import Record

_BASES = {"table5": "ResNet18", "table6": "ResNet34"}


def claims(table: str) -> tuple[Claim, ...]:
    """What sections 4.3 and 4.4 of the paper say of a table; in each pair the first is said to have more."""
    base = _BASES[table]
    fixed, learned = (f"{base}-MLP+", f"{base}-A+"), (f"{base}-MLPN", f"{base}-AN")
    above = tuple((row, base) for row in learned)
    return (
        Claim("Learned noise raises accuracy on clean images", above, ("clean",)),
        Claim("Learned noise raises accuracy under white-box attacks", above, ATTACKS),
        Claim("Learned noise raises accuracy under black-box attacks", above, TRANSFERS),
        Claim("Learned noise raises accuracy on corrupted images", above, CORRUPTIONS),
        Claim(
            "Learned noise defends better than fixed noise",
            tuple(zip(learned, fixed, strict=True)),
            (*ATTACKS, *TRANSFERS),
        ),
        Claim(
            "Learned noise everywhere is best in all cases",
            tuple((learned[1], row) for row in (base, *fixed, learned[0])),
            tuple(COLUMNS),
        ),
        Claim("Fixed noise lowers accuracy on clean images", tuple((base, row) for row in fixed), ("clean",)),
        Claim("Fixed noise raises accuracy under white-box attacks", tuple((row, base) for row in fixed), ATTACKS),
    )


DENIED = ("Fixed noise raises accuracy under white-box attacks",)
"""Claims that the paper makes the other way: it says that this is not so."""


def comparisons(record: Record, claim: Claim) -> list[Comparison]:
    """All comparisons of a claim whose rows the record has."""
    there = {run["row"] for run in record["runs"]}
    pairs = tuple(pair for pair in claim.pairs if there.issuperset(pair))
    return compare(record, replace(claim, pairs=pairs))


def verdict(c: Comparison) -> int:
    """1 where a difference is beyond chance and as claimed, -1 where it is so the other way, else 0.

    Chance is that of training seeds or, where there is one seed, that of the choice of images.
    """
    if c.p_value is not None:
        return c.verdict
    if c.error is None or abs(c.gain) <= c.error:
        return 0
    return 1 if c.gain > 0 else -1
