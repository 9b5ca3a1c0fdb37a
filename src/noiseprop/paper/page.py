"""docs/reproduction.md, made from records alone: tables, claims and why, every number and verdict derived."""

from collections.abc import Mapping, Sequence
from typing import Any

from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.paper.claims import (
    CLAIMS,
    EPOCHS_TO_ACCURACY,
    EPOCHS_TO_LOSS,
    PERCENTAGES,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
    Claim,
    Comparison,
    compare,
    counted,
    outcome,
    relative_gain,
)
from noiseprop.paper.how import votes
from noiseprop.paper.protocol import DEPARTURES
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.reasons import markdown_list, what_it_costs, what_noise_does, where_sigma_went
from noiseprop.paper.results import Record, cell, runs_of, spread
from noiseprop.paper.tables import Rows, findings_table, markdown, marked_tables, rows_of, states_tables

_HEADINGS = COLUMNS | {
    EPOCHS_TO_LOSS: f"epochs to validation loss {VALIDATION_LOSS:g}",
    EPOCHS_TO_ACCURACY: f"epochs to validation accuracy {VALIDATION_ACCURACY:g}",
}
_CLAUSES = {
    "holds": "It holds",
    "in part": "It holds in part",
    "mixed": "It holds in part and fails in part",
    "not shown": "It is not shown",
    "no": "It does not hold",
    "the reverse": "The reverse holds",
}
_TITLES = {"table3": "Table 3: MLPs on MNIST", "table4": "Table 4: CNNs on MNIST"}

INTRODUCTION = """# The paper's results, redone

Xiao, Zhang and Peng (2021) print one run of each network. Here are the same tables, on MNIST with several runs, judged
as a random network must be, and what becomes of each claim of their section 4. `python docs/reproduction.py` makes this
page from the files `table*.json` and `figure4-*.json` of `results/`, which `noiseprop reproduce table3` (to `table6`,
`figure4`) writes; no result or verdict is typed by hand.

How to read it:

- A figure is an accuracy: mean ± standard deviation over training seeds, and the paper's number in brackets. With a
  single seed ± is half of Wilson's 95 % interval, that is, what the choice of images leaves open; how far seeds scatter
  is then not known.
- Clean and corrupted images are the whole test split, or as many as the part says, corruptions averaged over five
  severities. Attacks are those of the paper's Table 2, made on the first images of the split, which is in random order.
- A network that is random at inference is scored by one draw of its noise, which the attack has not seen. White-box
  attacks on it average each gradient over many draws (EOT).
- Claims are tested over seeds: Welch's t-test, two-sided, with Holm's correction within each claim; differences come
  with their 95 % intervals, and "significant" means p < 0.05. All networks see the same test images, so the tests speak
  of other trainings, not of other images.
- With one seed no claim can be tested so. What is said of the ResNets then tests it over images, and speaks of these
  trained networks alone, not of what another training would give.
- † marks networks of which a check found something doubtful; what, is said below the claims.
"""
"""The page's title, and how to read it."""

_PROTOCOLS = """## The two protocols on MNIST

`paper` follows the text; where it is silent, sigma starts at 1, there is no mean mu, and noise acts at inference too.
Both protocols use one random 5:1:1 split of the 70,000 digits, the paper's: 50,000 to train, 10,000 to validate, 10,000
to test. `released-code` keeps that split, and departs from the text where the authors' code does:
"""

_CHECKS = {
    "noise": "the noise is dead, or the same for all images of a batch or in every pass",
    "convergence": "twice the steps, or twice the draws, lower PGD's accuracy still",
    "single step": "one step is stronger than many",
    "transfer": "an attack made on another network is stronger than the white-box one",
    "large eps": "accuracy is above chance at eps = 0.5, where every image can be turned grey",
    "frozen noise": "what noise gains is gone once its draw is known",
}
"""What it means that a check of `trust` failed."""


def page(records: Sequence[Record], steps: Mapping[str, Any] | None = None) -> str:
    """The part of the page that is about MNIST, Table 3 before Table 4, the protocol `paper` first.

    Args:
        records: of Tables 3 and 4; none give an empty page.
        steps: content of the benchmarks in `reasons.BENCHMARKS` that are at hand.
    """
    if not records:
        return ""
    ordered = sorted(records, key=lambda r: (r["table"], r["protocol"] != "paper", r["protocol"]))
    parts = [_overview(ordered), _protocols()]
    return "\n".join([*parts, *(_part(record, steps or {}) for record in ordered)]).rstrip() + "\n"


def _overview(records: Sequence[Record]) -> str:
    """For each claim its verdict under each protocol."""
    lines = ["## MNIST in short", ""]
    lines.append("In brackets: of how many differences a claim consists, how many are significant, and which way.")
    for table in sorted({record["table"] for record in records}):
        lines += ["", markdown(verdicts([record for record in records if record["table"] == table]))]
    return "\n".join([*lines, ""])


def verdicts(records: Sequence[Record]) -> Rows:
    """For each claim of one table its verdict in brief, a column for each record."""
    table = records[0]["table"]
    heading = [_TITLES[table], *(f"`{record['protocol']}`, {_seeds(record)}" for record in records)]
    return [heading, *([c.sentence, *(_brief(compare(record, c)) for record in records)] for c in CLAIMS[table])]


def _seeds(record: Record) -> str:
    n = len(record["seeds"])
    return f"{n} seed{'s' if n > 1 else ''}"


def _brief(comparisons: Sequence[Comparison]) -> str:
    n = len(comparisons)
    if any(c.p_value is None for c in comparisons):
        return f"untested ({sum(c.gain > 0 for c in comparisons)} of {n} as claimed)"
    return f"**{outcome(comparisons)}** (of {n}, {counted(comparisons, 'none significant')})"


def _told(comparisons: Sequence[Comparison]) -> str:
    """The verdict on a claim with its counts."""
    n = len(comparisons)
    if any(c.p_value is None for c in comparisons):
        claimed = sum(c.gain > 0 for c in comparisons)
        return f"With one seed it cannot be tested. Differences that have the claimed sign: {claimed} of {n}."
    holds, against = (sum(c.verdict == sign for c in comparisons) for sign in (1, -1))
    return (
        f"**{_CLAUSES[outcome(comparisons)]}.** Differences: {n}. Significant as claimed: {holds}; significant the "
        f"other way: {against}; not significant: {n - holds - against}."
    )


def _protocols() -> str:
    lines = [_PROTOCOLS, *(f"- `{name}`: {says}." for name, says in DEPARTURES.items()), ""]
    switch = "`noiseprop reproduce table3 --protocol paper --switch gradient-sign`"
    return "\n".join([*lines, f"Each can be switched by itself, to see which makes which number: {switch}.", ""])


def _part(record: Record, steps: Mapping[str, Any]) -> str:
    lines = [f"## {_TITLES[record['table']]}, protocol `{record['protocol']}`", "", _how(record), ""]
    for table in marked_tables(record):
        lines += [markdown(table), ""]
    if "fixed-sigmoid" in record["departures"] and record["table"] == "table3":
        lines += [
            "Here `MLPN, Sigmoid` is `MLP+, Sigmoid`, run for run (`fixed-sigmoid`).",
            "",
        ]
    for claim in CLAIMS[record["table"]]:
        lines += _claim(record, claim)
    lines += _percentages(record)
    lines += ["### Nearly no extra cost?", "", *what_it_costs(record, steps)]
    if course := where_sigma_went(record):
        lines += ["### Why: where sigma went", "", *course]
    if noise := what_noise_does(record):
        lines += ["### Why: noise in training and noise at inference", "", *noise]
    lines += _doubts(record)
    for table, says in zip(states_tables(record), ("under white-box attacks", "on other images"), strict=False):
        summary = f"<details><summary>Every state of the random networks {says}</summary>"
        lines += [summary, "", markdown(table), "", "</details>", ""]
    if record["table"] == "table3":
        lines += _figure(record)
    return "\n".join(lines)


def _how(record: Record) -> str:
    settings, data = record["settings"], record["data"]
    attacked = min(settings["attack_images"], data["test_images"])
    took = [len(run["course"]["validation_loss"]) for run in record["runs"]]
    epochs = str(max(took)) if min(took) == max(took) else f"{min(took)} to {max(took)}"
    single = " Its ± is of images, not of seeds." if len(record["seeds"]) == 1 else ""
    few = f"{told} " if (told := votes(record)) else ""
    return (
        f"Training seeds: {len(record['seeds'])}.{single} Epochs: {epochs}, in {record['precision']}. Test images "
        f"({data['name']}): {data['test_images']:,}, of which the first {attacked:,} are attacked. White-box attacks "
        f"on random networks: EOT-{max(settings['attack_draws'])}. {few}The paper's numbers stand in brackets."
    )


def _claim(record: Record, claim: Claim) -> list[str]:
    """Verdict and numbers of a claim; a row for each condition, a column for each pair."""
    comparisons = compare(record, claim)
    rows: Rows = [["", *(f"{first} against {second}" for first, second in claim.pairs)]]
    for what in claim.what:
        rows.append([_HEADINGS[what], *(_cell(c) for c in comparisons if c.what == what)])
    n = f"n = {_seeds(record)} each"
    if claim.what[0] in COLUMNS:
        error = "± half its 95 % interval; p" if len(record["seeds"]) > 1 else "± what the images leave open (95 %)"
        says = f"Difference in accuracy {error}; the paper's difference in brackets; {n}."
    else:
        says = (
            f"Epochs of the one and of the other (± standard deviation), p; {n}. Validation is as the network is used, "
            "with its noise. Between epochs the course is a straight line; a run that never came there counts as one "
            "epoch more than it had."
        )
    return [f"### {claim.sentence}?", "", _told(comparisons), "", says, "", markdown(rows), ""]


def _cell(c: Comparison) -> str:
    p = "" if c.p_value is None else "; p < 0.001" if c.p_value < 0.001 else f"; p = {c.p_value:.3f}"
    if c.printed is None:
        return ", ".join(f"{s.mean:.1f}" + (f" ± {s.std:.1f}" if s.std is not None else "") for s in c.ours) + p
    return f"{c.gain:+.3f} ± {c.error:.3f}{p} ({c.printed:+.3f})"


def _percentages(record: Record) -> list[str]:
    """The paper's percentages beside ours."""
    first, second = PERCENTAGES[record["table"]]
    printed = PUBLISHED[record["table"]]
    rows: Rows = [["", "the paper", "here", "95 % interval"]]
    for what, heading in COLUMNS.items():
        gain = relative_gain(record, first, second, what)
        ours = ("–", "–") if gain is None else (f"{gain.estimate:+.1%}", f"{gain.low:+.1%} to {gain.high:+.1%}")
        rows.append([heading, f"{printed[first][what] / printed[second][what] - 1:+.1%}", *ours])
    if all(row[2] == "–" for row in rows[1:]):
        return []
    says = (
        f"By how much the accuracy of {first} is above that of {second}, relative to the latter, as the paper has it."
    )
    return ["### The paper's percentages", "", says, "", markdown(rows), ""]


def _doubts(record: Record) -> list[str]:
    """Which checks failed and how often, what that means, and the first such finding of each row and check."""
    table = findings_table(record)
    lines = ["### What makes the figures doubtful", "", "In how many runs each check failed. It fails if", ""]
    lines += markdown_list([f"*{name}*: {_CHECKS[name]}" for name in table[0][1:]])
    lines += [markdown(table), ""]
    found: dict[tuple[str, str], str] = {}
    for name in (row[0] for row in table[1:]):
        for run in runs_of(record, name):
            for finding in run["findings"]:
                if finding["outcome"] == "failed":
                    says = f"{name}, seed {run['seed']}: {finding['sentence']}"
                    found.setdefault((name, finding["name"]), says)
    if found:
        lines += ["The first finding of each kind:", "", *markdown_list(list(found.values()))]
    return lines + _weak_lbfgs(record)


def _weak_lbfgs(record: Record) -> list[str]:
    """Where L-BFGS, which may change an image as much as it likes, leaves more than PGD in its ball."""
    rows = [
        row
        for row in rows_of(record)
        if spread(record, row, "lbfgs").mean > spread(record, row, "pgd").mean + TOLERANCE
    ]
    if not rows:
        return []
    told = [f"{row} ({cell(record, row, 'lbfgs')} against {cell(record, row, 'pgd')})" for row in rows]
    says = "L-BFGS may change an image as much as it likes, and still leaves more than PGD in its small ball: of "
    says += (
        f"{', '.join(told)}. There its few steps of fixed length have not converged, and what it leaves is a measure "
    )
    says += "of the attack as much as of the network."
    return [says, ""]


def _figure(record: Record) -> list[str]:
    protocol = record["protocol"]
    says = "Means over seeds, bands of ± one standard deviation; each network with its noise as it is used."
    return ["### Figure 3", "", f"![Figure 3, protocol {protocol}](../results/figure3-{protocol}.svg)", "", says, ""]
