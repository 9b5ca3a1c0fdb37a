"""The part of docs/reproduction.md about the ResNets: Tables 5 and 6 and Figure 4, every number and verdict derived."""

from collections.abc import Mapping, Sequence
from typing import Any

from noiseprop.evaluation.statistics import mean_std
from noiseprop.paper.claims import Claim, Comparison
from noiseprop.paper.claims_resnets import DENIED, claims, comparisons, verdict
from noiseprop.paper.figure4 import says, shares_table
from noiseprop.paper.how import how
from noiseprop.paper.protocol import TABLES, departures
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.reasons import rows_of
from noiseprop.paper.results import Record, runs_of, spread
from noiseprop.paper.tables import Rows, findings_table, main_tables, markdown, states_tables

_TITLES = {"table5": "Table 5: ResNet18 on CIFAR-10", "table6": "Table 6: ResNet34 on Tiny-ImageNet"}

_INTRODUCTION = """# The paper's ResNets, redone

Made from the files `results/table5-*.json`, `results/table6-*.json` and `results/figure4-*.json`, which `noiseprop
reproduce` writes. Each part says with which recipe, on which data and on how many images it was made; where these are
not the paper's, the figures neither confirm nor refute the paper's numbers, only the claims can be set side by side.
With one training seed differences come with 95 % intervals over images, which say how two trained networks differ, not
how trainings scatter; with more, intervals and p are Welch's over seeds, p after Holm's correction within the claim.
"""


def page(records: Sequence[Record], figures: Mapping[str, Mapping[str, Any]]) -> str:
    """All parts, Table 5 before Table 6.

    Args:
        records: of Tables 5 and 6; none give an empty page.
        figures: records of Figure 4 by the names of their files without suffix.
    """
    if not (records or figures):
        return ""
    ordered = sorted(records, key=lambda r: (r["table"], r["protocol"] != "paper", r["protocol"], _recipe(r)))
    parts = [_INTRODUCTION, _overview(ordered), *(_part(record) for record in ordered)]
    parts += [_figure(name, record) for name, record in sorted(figures.items())]
    return "\n".join(parts).rstrip() + "\n"


def _overview(records: Sequence[Record]) -> str:
    """For each claim its answer in each part."""
    lines = ["## In short", ""]
    for table in sorted({record["table"] for record in records}):
        there = [record for record in records if record["table"] == table]
        rows = [[_TITLES[table], *(f"{record['protocol']}, {_recipe(record)}" for record in there)]]
        for claim in claims(table):
            said = " (the paper: no)" if claim.sentence in DENIED else ""
            rows.append([f"{claim.sentence}{said}", *(_brief(comparisons(record, claim)) for record in there)])
        lines += [markdown(rows), ""]
    return "\n".join(lines) if records else ""


def _brief(found: Sequence[Comparison]) -> str:
    if not found:
        return "not run"
    signs = [verdict(c) for c in found]
    against = f", {signs.count(-1)} the other way" if -1 in signs else ""
    return f"{_word(signs).lower()} ({signs.count(1)} of {len(found)}{against})"


def _word(signs: Sequence[int]) -> str:
    if 1 in signs:
        return "Yes" if set(signs) == {1} else "Mixed" if -1 in signs else "In part"
    return "The reverse" if set(signs) == {-1} else "No" if -1 in signs else "Not shown"


def _recipe(record: Record) -> str:
    epochs = max(len(run["course"]["train_loss"]) for run in record["runs"])
    named = "Table 1's recipe" if record["recipe"]["name"] == "table1" else f"{record['recipe']['name']} recipe"
    return f"{named}, {epochs} epoch{'s' * (epochs > 1)}"


def _part(record: Record) -> str:
    rows, seeds = rows_of(record), sorted({len(runs_of(record, row)) for row in rows_of(record)})
    missing = [row.name for row in TABLES[record["table"]] if row.name not in rows]
    many = (
        f"{seeds[0]} training seed{'s' if seeds != [1] else ''}"
        if len(seeds) == 1
        else f"{seeds[0]} to {seeds[-1]} seeds"
    )
    lines = [
        f"## {_TITLES[record['table']]}, protocol `{record['protocol']}`, {_recipe(record)}",
        "",
        f"{how(record)} Each row: {many}. The paper's numbers stand in brackets.",
        "",
        *([f"Not run here: {', '.join(missing)}.", ""] if missing else []),
        *_tables(main_tables(record)),
        *_departures(record),
        *[_claim(record, claim) for claim in claims(record["table"])],
        _cost(record),
        _sigma(record),
        _live(record),
        "### What makes the figures doubtful",
        "",
        "In how many runs each check of `trust` failed, on " + _trusted(record),
        "",
        markdown(findings_table(record)),
        "",
        *_failures(record),
    ]
    return "\n".join(lines)


def _tables(tables: Sequence[Rows]) -> list[str]:
    return [line for rows in tables for line in (markdown(rows), "")]


def _departures(record: Record) -> list[str]:
    if not record["departures"]:
        return []
    told = departures(record["table"])
    return ["Departures from the paper:", "", *(f"- `{name}`: {told[name]}." for name in record["departures"]), ""]


def _claim(record: Record, claim: Claim) -> str:
    found = comparisons(record, claim)
    heading = f"### {claim.sentence}?"
    if not found:
        return f"{heading}\n\nThe rows that would tell are not run here.\n"
    rows = [["", *(COLUMNS[what] for what in claim.what)]]
    for first, second in claim.pairs:
        cells = [_cell(c) for c in found if (c.first, c.second) == (first, second)]
        if cells:
            rows.append([f"{first} against {second}", *cells])
    return "\n".join([heading, "", _answer(claim, found), "", markdown(rows), ""])


def _answer(claim: Claim, found: Sequence[Comparison]) -> str:
    n, signs = len(found), [verdict(c) for c in found]
    holds, against = signs.count(1), signs.count(-1)
    claimed = sum(c.gain > 0 for c in found)
    chance = "the choice of images" if any(c.p_value is None for c in found) else "the spread over seeds"
    paper = " The paper says that it does not." if claim.sentence in DENIED else ""
    return (
        f"{_word(signs)}: {claimed} of {n} differences are in that direction, {holds} of them by more than {chance} "
        f"explains; {against} are by as much the other way.{paper}"
    )


def _cell(c: Comparison) -> str:
    error = "" if c.error is None else f" ± {c.error:.3f}"
    p = "" if c.p_value is None else "; p < 0.001" if c.p_value < 0.001 else f"; p = {c.p_value:.3f}"
    return f"{c.gain:+.3f}{error}{p}" + ("" if c.printed is None else f" ({c.printed:+.3f})")


def _cost(record: Record) -> str:
    rows, plain = rows_of(record), TABLES[record["table"]][0].name
    seconds = {row: mean_std([run["seconds_per_epoch"] for run in runs_of(record, row)]).mean for row in rows}
    table = [["", "seconds an epoch", f"× {plain}"]]
    for row, value in seconds.items():
        table.append([row, f"{value:.1f}", f"{value / seconds[plain]:.2f}" if plain in seconds else "–"])
    note = "Medians over epochs, validation included, as the runs happened to share the machine."
    return "\n".join(["### Nearly no extra cost?", "", note, "", markdown(table), ""])


def _sigma(record: Record) -> str:
    """Where learned sigma went: the head's layers one by one, the others together."""
    table = [["mean of sigma's size", "after the first epoch", "after the last"]]
    for row in rows_of(record):
        courses = [run["course"]["sigma"] for run in runs_of(record, row)]
        if not any(len(set(layer["mean"])) > 1 for course in courses for layer in course.values()):
            continue
        head = [layer for layer in courses[0] if layer.startswith("head.")]
        for layer in head:
            ends = [mean_std([course[layer]["mean"][i] for course in courses]) for i in (0, -1)]
            table.append([f"{row}: {layer}", *(f"{end.mean:.3f}" for end in ends)])
        others = [layer for layer in courses[0] if layer not in head]
        if others:
            ends = [[mean_std([c[layer]["mean"][i] for c in courses]).mean for layer in others] for i in (0, -1)]
            cells = [f"{sum(end) / len(end):.3f} (layers from {min(end):.3f} to {max(end):.3f})" for end in ends]
            table.append([f"{row}: {len(others)} layers before the head", *cells])
    return "\n".join(["### Why: where sigma went", "", markdown(table), ""]) if len(table) > 1 else ""


def _live(record: Record) -> str:
    """What noise at inference adds by itself."""
    noisy = [row for row in rows_of(record) if runs_of(record, row)[0]["noisy"]]
    if not noisy:
        return ""
    plain = TABLES[record["table"]][0].name
    sentences = [f"Under PGD {plain} keeps {spread(record, plain, 'pgd')}."] if plain in rows_of(record) else []
    for row in noisy:
        off, on = spread(record, row, "pgd", state="off", draws=0), spread(record, row, "pgd")
        word = "adds" if on.mean >= off.mean else "takes"
        sentences.append(
            f"{row}: {off} with its noise off, {on} with it; noise at inference {word} {abs(on.mean - off.mean):.3f}."
        )
    title = "### Why: trained with noise, or random at inference?"
    return "\n".join([title, "", " ".join(sentences), "", *_tables(states_tables(record))])


def _trusted(record: Record) -> str:
    counts: dict[int, list[str]] = {}
    for row, count in record["trust_images"].items():
        counts.setdefault(count, []).append(row)
    return "; ".join(f"{count:,} images of {', '.join(rows)}" for count, rows in counts.items()) + "."


def _failures(record: Record) -> list[str]:
    """What each failed check says, of the first seed."""
    told: list[str] = []
    for row in rows_of(record):
        run = runs_of(record, row)[0]
        told += [f"- {row}: {f['sentence']}" for f in run["findings"] if f["outcome"] == "failed"]
    return [*told, ""] if told else []


def _figure(name: str, record: Mapping[str, Any]) -> str:
    seen = ", ".join(record["networks"])
    lines = [
        f"## Figure 4: saliency, protocol `{record['protocol']}`",
        "",
        f"![Images and saliency maps of {seen}](../results/{name}.svg)",
        "",
        says(record),
        "",
    ]
    if "inside" in record:
        lines += [
            "The paper says that optimised noise makes the network look more at the object. Mean ± standard deviation "
            "over images; the last column is the mean difference on the same images with its 95 % interval.",
            "",
            markdown(shares_table(record)),
            "",
        ]
    return "\n".join(lines)
