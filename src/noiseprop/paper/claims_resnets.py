"""The paper's claims about Tables 5 and 6, tested over training seeds or, where a network has one, over images."""

from dataclasses import replace

from scipy.stats import norm

from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.models.registry import get_architecture
from noiseprop.paper.claims import Claim, Comparison, both_errors, corrected, differences
from noiseprop.paper.protocol import TABLES
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import Record, accuracy, image_interval, runs_of, spread
from noiseprop.paper.tables import rows_of


def claims(table: str) -> tuple[Claim, ...]:
    """What sections 4.3 and 4.4 of the paper say of a table; in each pair the first is said to have more."""
    base = TABLES[table][0].name
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


_ROUNDING = 1e-9  # of averages over severities


def over_seeds(c: Comparison) -> bool:
    """Whether a comparison is tested over training seeds: both networks have several, and not all are alike."""
    return all(spread.n > 1 for spread in c.ours) and any((spread.std or 0) > _ROUNDING for spread in c.ours)


def chance(record: Record) -> float:
    """The accuracy of guessing one class of all."""
    return 1 / record.get("classes", get_architecture(TABLES[record["table"]][0].model).classes)


def guesses(record: Record, row: str, what: str) -> bool:
    """Whether no run of a row is shown to do better than guessing: it is within or above their intervals."""
    return max(image_interval(run, what)[0] for run in runs_of(record, row)) <= chance(record)


def guessing(record: Record) -> list[str]:
    """The rows that are not shown to have learned: on clean images they may be guessing.

    What is left of such a network under attack looks like a defence, and is a guess too.
    """
    return [row for row in rows_of(record) if guesses(record, row, "clean")]


def failed_attacks(record: Record) -> dict[str, list[str]]:
    """The white-box attacks that failed, by row: made on another network, the same attack leaves clearly less.

    Such an attack had the gradients and made less of them than one that had none. What it leaves is no robustness.
    Rows that have not learned (`guessing`) are left out: no attack says anything of them.
    """
    idle, found = guessing(record), dict[str, list[str]]()
    for row in rows_of(record):
        for transfer in TRANSFERS if row not in idle else ():
            attack = transfer.removesuffix("-transfer")
            if spread(record, row, attack).mean > spread(record, row, transfer).mean + TOLERANCE:
                found.setdefault(row, []).append(attack)
    return found


def comparisons(record: Record, claim: Claim) -> list[Comparison]:
    """All comparisons of a claim whose rows the record has, with p after Holm's correction within the claim.

    Rows that have not learned (`guessing`) are left out, and attacks that failed on a row (`failed_attacks`).

    p is of Welch's test over seeds (`over_seeds`), or of the choice of images between the rows' first seeds. The latter
    is two-sided, by the normal approximation, as if the two networks had been judged on different images. They are
    judged on the same ones, on which networks tend to err together, so it is rather too large.
    """
    idle, failed = guessing(record), failed_attacks(record)
    known = set(rows_of(record)).difference(idle)
    pairs = tuple(pair for pair in claim.pairs if known.issuperset(pair))
    return corrected(
        [
            c if over_seeds(c) else _over_images(record, c)
            for c in differences(record, replace(claim, pairs=pairs))
            if not any(c.what in failed.get(row, ()) for row in (c.first, c.second))
        ]
    )


def _over_images(record: Record, c: Comparison) -> Comparison:
    """The difference between the first seeds of two rows, and what the choice of images leaves open of it."""
    first, second = (accuracy(runs_of(record, row)[0], c.what) for row in (c.first, c.second))
    error = both_errors(record, c.first, c.second, c.what)
    p_value = 2 * float(norm.sf(abs(first - second) / error * norm.isf(0.025)))
    return replace(c, gain=first - second, error=error, p_value=p_value)
