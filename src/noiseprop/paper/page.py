"""docs/reproduction.md, made from records alone: tables, claims and why, every number and verdict derived."""

from collections.abc import Sequence

from noiseprop.evaluation.statistics import mean_std
from noiseprop.paper.claims import (
    CLAIMS,
    EPOCHS_TO_ACCURACY,
    EPOCHS_TO_LOSS,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
    Claim,
    Comparison,
    compare,
)
from noiseprop.paper.protocol import DEPARTURES
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import Record, runs_of, spread
from noiseprop.paper.tables import findings_table, main_table, markdown, states_table

_HEADINGS = COLUMNS | {
    EPOCHS_TO_LOSS: f"epochs to validation loss {VALIDATION_LOSS:g}",
    EPOCHS_TO_ACCURACY: f"epochs to validation accuracy {VALIDATION_ACCURACY:g}",
}
_TITLES = {"table3": "Table 3: MLPs on MNIST", "table4": "Table 4: CNNs on MNIST"}

_INTRODUCTION = """# The paper's MNIST results, redone

Made by `python docs/reproduction.py` from the files `results/table3-*.json` and `results/table4-*.json`, which
`noiseprop reproduce` writes; no number or verdict on this page is typed by hand.

How to read it. Each figure is an accuracy: the mean over training seeds ± their standard deviation. All networks share
one split of the images. Clean and corrupted images are the whole test split, corruptions averaged over 5 severities;
attacks are Table 2's, made on the first images of the test split, as many as the table says. Networks that are random
at inference are scored by one draw of their noise, which the attack has not seen, and white-box attacks on them average
each gradient over the stated number of draws (EOT). Comparisons are Welch's t-tests over seeds, two-sided, with Holm's
correction within each claim; "significant" means p < 0.05.
"""


def page(records: Sequence[Record]) -> str:
    """The whole document: a part for each record, Table 3 before Table 4, the protocol `paper` first."""
    ordered = sorted(records, key=lambda r: (r["table"], r["protocol"] != "paper", r["protocol"]))
    parts = [_INTRODUCTION, _overview(ordered), _protocols()]
    return "\n".join([*parts, *(_part(record) for record in ordered)]).rstrip() + "\n"


def _overview(records: Sequence[Record]) -> str:
    """For each claim its verdict under each protocol."""
    lines = ["## In short", ""]
    for table in sorted({record["table"] for record in records}):
        there = [record for record in records if record["table"] == table]
        rows = [[_TITLES[table], *(record["protocol"] for record in there)]]
        for claim in CLAIMS[table]:
            rows.append([claim.sentence, *(_brief(compare(record, claim)) for record in there)])
        lines += [markdown(rows), ""]
    return "\n".join(lines)


def _brief(comparisons: Sequence[Comparison]) -> str:
    n = len(comparisons)
    if any(c.p_value is None for c in comparisons):
        return f"one seed: {sum(c.gain > 0 for c in comparisons)} of {n} as claimed"
    holds, against = (sum(c.verdict == sign for c in comparisons) for sign in (1, -1))
    if holds == n:
        return f"**holds** ({n} of {n})"
    other = f", {against} the other way" if against else ""
    return f"**{'in part' if holds else 'no'}** ({holds} of {n}{other})"


def _protocols() -> str:
    lines = [
        "## The two protocols",
        "",
        "`paper` follows the text. `released-code` departs from it where the code does:",
        "",
    ]
    lines += [f"- `{name}`: {says}." for name, says in DEPARTURES.items()]
    switch = "`noiseprop reproduce table3 --protocol paper --switch gradient-sign`"
    return "\n".join([*lines, "", f"Each can be switched by itself: {switch}.", ""])


def _part(record: Record) -> str:
    settings, seeds, data = record["settings"], len(record["seeds"]), record["data"]
    attacked = min(settings["attack_images"], data["test_images"])
    eot = max(settings["attack_draws"])
    how = (
        f"Training seeds: {seeds}; epochs: {_epochs(record)}, in {record['precision']}; test images: "
        f"{data['test_images']:,}, {attacked:,} of them attacked; white-box attacks on random networks: EOT-{eot}. "
        "The paper's numbers stand in brackets."
    )
    figure = f"\n![Figure 3 under {record['protocol']}](../results/figure3-{record['protocol']}.svg)\n"
    return "\n".join(
        [
            f"## {_TITLES[record['table']]}, protocol `{record['protocol']}`",
            "",
            how,
            "",
            markdown(main_table(record)),
            "",
            *[_claim(record, claim) for claim in CLAIMS[record["table"]]],
            _cost(record),
            _sigma(record),
            _live(record),
            "### What makes the figures doubtful",
            "",
            "In how many runs each check of `trust` failed; every finding's sentence is in the JSON.",
            "",
            markdown(findings_table(record)),
            figure if record["table"] == "table3" else "",
        ]
    )


def _claim(record: Record, claim: Claim) -> str:
    """Verdict and numbers of a claim."""
    comparisons = compare(record, claim)
    lines = [f"### {claim.sentence}?", "", _verdict(comparisons), ""]
    rows = [["", *(_HEADINGS[what] for what in claim.what)]]
    for first, second in claim.pairs:
        cells = [_cell(c) for c in comparisons if (c.first, c.second) == (first, second)]
        rows.append([f"{first} against {second}", *cells])
    if claim.what[0] in COLUMNS:
        lines += ["Difference in accuracy; p; the paper's difference in brackets.", ""]
    else:
        lines += ["Epochs of the one, of the other, and p; a run that never came there counts as one epoch more.", ""]
    return "\n".join([*lines, markdown(rows), ""])


def _verdict(comparisons: Sequence[Comparison]) -> str:
    n = len(comparisons)
    claimed = sum(c.gain > 0 for c in comparisons)
    if any(c.p_value is None for c in comparisons):
        return f"With one seed nothing can be tested. {claimed} of {n} differences have the claimed sign."
    holds, against = (sum(c.verdict == sign for c in comparisons) for sign in (1, -1))
    word = "It holds" if holds == n else "It holds in part" if holds else "It does not hold"
    return (
        f"{word}: of {n} differences {claimed} have the claimed sign, {holds} of them significantly; {against} are "
        "significantly the other way."
    )


def _cell(c: Comparison) -> str:
    p = "one seed" if c.p_value is None else "p < 0.001" if c.p_value < 0.001 else f"p = {c.p_value:.3f}"
    if c.printed is None:
        return f"{c.ours[0].mean:.1f}, {c.ours[1].mean:.1f}; {p}"
    return f"{c.gain:+.3f}; {p} ({c.printed:+.3f})"


def _cost(record: Record) -> str:
    """Seconds an epoch, beside the noise-free network."""
    plain = {"table3": "MLP, ReLU", "table4": "CNN"}[record["table"]]
    seconds = {row: mean_std([run["seconds_per_epoch"] for run in runs_of(record, row)]).mean for row in _rows(record)}
    rows = [["", "seconds an epoch", f"× {plain}"]]
    rows += [[row, f"{value:.2f}", f"{value / seconds[plain]:.2f}"] for row, value in seconds.items()]
    note = (
        "Medians over epochs, validation included, as the runs happened to share the machine; "
        "`docs/performance.md` has the careful comparison."
    )
    return "\n".join(["### Nearly no extra cost?", "", note, "", markdown(rows), ""])


def _sigma(record: Record) -> str:
    """The course of sigma over training, and in words where it went."""
    learned = [row for row in _rows(record) if _moves(record, row)]
    if not learned:
        return ""
    last = max(len(run["course"]["validation_loss"]) for run in record["runs"])
    shown = [epoch for epoch in (1, 2, 5, 10, 20, 30) if epoch < last] + [last]
    rows = [["mean of sigma's size after epoch", *map(str, shown)]]
    sentences: list[str] = []
    for row in learned:
        courses = [run["course"]["sigma"] for run in runs_of(record, row)]
        ends: list[str] = []
        for layer in courses[0]:
            sizes = [course[layer]["mean"] for course in courses]
            at = [[size[epoch - 1] for size in sizes if epoch <= len(size)] for epoch in shown]
            rows.append([f"{row}: {layer}", *(f"{sum(v) / len(v):.3f}" if v else "–" for v in at)])
            first, end = (mean_std([size[i] for size in sizes]).mean for i in (0, -1))
            ends.append(f"{layer} {'falls' if end < first else 'grows'} from {first:.3f} to {end:.3f}")
        sentences.append(f"{row}: from the first epoch to the last, {', '.join(ends)}.")
    return "\n".join(["### Why: where sigma went", "", *sentences, "", markdown(rows), ""])


def _epochs(record: Record) -> str:
    """How many epochs the runs took: one number, or from the fewest to the most."""
    took = [len(run["course"]["validation_loss"]) for run in record["runs"]]
    return str(max(took)) if min(took) == max(took) else f"{min(took)} to {max(took)}"


def _live(record: Record) -> str:
    """What noise at inference adds by itself."""
    noisy = [row for row in _rows(record) if runs_of(record, row)[0]["noisy"]]
    if not noisy:
        return ""
    plain = {"table3": ("MLP, ReLU", "MLP, Sigmoid"), "table4": ("CNN",)}[record["table"]]
    without = ", ".join(f"{row} {spread(record, row, 'pgd')}" for row in plain)
    sentences = [f"Under PGD: {without}."]
    for row in noisy:
        off, on = spread(record, row, "pgd", state="off", draws=0), spread(record, row, "pgd")
        word = "adds" if on.mean >= off.mean else "takes"
        sentences.append(
            f"{row}: {off} with its noise off, {on} with it; noise at inference {word} {abs(on.mean - off.mean):.3f}."
        )
    return "\n".join(
        ["### Why: trained with noise, or random at inference?", "", *sentences, "", markdown(states_table(record)), ""]
    )


def _rows(record: Record) -> list[str]:
    there = {run["row"] for run in record["runs"]}
    return [row for row in PUBLISHED[record["table"]] if row in there]


def _moves(record: Record, row: str) -> bool:
    """Whether sigma changed in training."""
    return any(len(set(layer["mean"])) > 1 for run in runs_of(record, row) for layer in run["course"]["sigma"].values())
