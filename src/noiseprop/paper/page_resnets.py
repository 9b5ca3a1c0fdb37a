"""The part of docs/reproduction.md about the ResNets: Tables 5 and 6 and Figure 4, every number and verdict derived."""

from collections.abc import Mapping, Sequence
from typing import Any

from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.paper.claims import Claim, Comparison, counted, outcome
from noiseprop.paper.claims_resnets import (
    DENIED,
    chance,
    claims,
    comparisons,
    failed_attacks,
    guesses,
    guessing,
    over_seeds,
)
from noiseprop.paper.figure4 import difference, says, shares_table
from noiseprop.paper.how import how
from noiseprop.paper.protocol import TABLES, departures
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.reasons_resnets import cost, course, live, percentages, where_sigma_went
from noiseprop.paper.results import Record, accuracy, cell, runs_of
from noiseprop.paper.tables import Rows, findings_table, listed, markdown, marked_tables, rows_of, states_tables

_CELLS = "Difference in accuracy ± half its 95 % interval; p; the paper's difference in brackets."
_TITLES = {"table5": "Table 5: ResNet18 on CIFAR-10", "table6": "Table 6: ResNet34 on Tiny-ImageNet"}

_INTRODUCTION = """## The ResNets in short

Each part says with which recipe, on which data and on how many images it was made; where these are not the paper's, the
figures neither confirm nor refute the paper's numbers, and only the claims can be set side by side. "As claimed" and
"the other way" count the differences with p < 0.05 after Holm's correction within the claim: over seeds by Welch's
t-test or, where a network has one seed or no seed differs from another, over images, between first seeds. The latter
says how two trained networks differ, not how trainings scatter. Networks that have not learned are left out.
"""


def page(
    records: Sequence[Record],
    figures: Mapping[str, Mapping[str, Any]],
    steps: Mapping[str, Any] | None = None,
) -> str:
    """The part of the page that is about ResNets, Table 5 before Table 6.

    Args:
        records: of Tables 5 and 6; none give an empty page.
        figures: records of Figure 4 by the names of their files without suffix.
        steps: content of the benchmarks in `reasons.BENCHMARKS` that are at hand.
    """
    if not (records or figures):
        return ""
    ordered = sorted(records, key=lambda r: (r["table"], r["protocol"] != "paper", r["protocol"], _recipe(r)))
    parts = [_INTRODUCTION, _overview(ordered), *(_part(record, steps or {}) for record in ordered)]
    parts += [_figure(name, record, _unlearned(record, ordered)) for name, record in sorted(figures.items())]
    return "\n".join(parts).rstrip() + "\n"


def judged_twice(half: Record, single: Record) -> str:
    """The part about what judging in bf16 changes: the same networks and images, judged in bf16 and in fp32."""
    rows, apart = [["bf16 / fp32", *COLUMNS.values()]], list[str]()
    for row in rows_of(half):
        cells: list[str] = []
        for what, title in COLUMNS.items():
            a, b = (accuracy(runs_of(record, row)[0], what) for record in (half, single))
            cells.append(f"{a:.3f} / {b:.3f}")
            if abs(a - b) > TOLERANCE:
                apart.append(f"{title} on {row}")
        rows.append([row, *cells])
    images, seed = half["data"]["test_images"], half["runs"][0]["seed"]
    says = f"{_TITLES[half['table']]}: {listed(rows_of(half))}, seed {seed}, on the first {images:,} test images, with "
    says += f"the same keys of the noise. More than {TOLERANCE:g} apart: {'; '.join(apart) or 'none'}."
    if apart:
        says += " Such figures belong to their precision and are to be compared within it; each table names its own."
    beaten = ["; ".join(_named(failed_attacks(record))) or "none" for record in (half, single)]
    says += f" White-box attacks that their own transfer beats: in bf16: {beaten[0]}; in fp32: {beaten[1]}."
    redo = " and ".join(f"`{command}`" for record in (half, single) for command in commands(record))
    redo = f"To redo it: {redo}, each with an `--out` of its own."
    return "\n".join(["## Does judging in bf16 change the figures?", "", says, "", redo, "", markdown(rows), ""])


def _named(attacks: Mapping[str, Sequence[str]]) -> list[str]:
    """Attacks by row, as a sentence has them."""
    return [f"{COLUMNS[what]} on {row}" for row, found in attacks.items() for what in found]


def _overview(records: Sequence[Record]) -> str:
    """For each claim its verdict in each part."""
    lines: list[str] = []
    for table in sorted({record["table"] for record in records}):
        there = [record for record in records if record["table"] == table]
        rows = [[_TITLES[table], *(f"`{record['protocol']}`, {_recipe(record)}, {_seeds(record)}" for record in there)]]
        for claim in claims(table):
            said = " (the paper: no)" if claim.sentence in DENIED else ""
            rows.append([f"{claim.sentence}{said}", *(_brief(comparisons(record, claim)) for record in there)])
        lines += [markdown(rows), ""]
    return "\n".join(lines)


def _seeds(record: Record) -> str:
    counts = list(_by_seeds(record))
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{many} seed{'' if counts == [1] else 's'}"


def _seeds_by_row(record: Record) -> str:
    by_seeds = _by_seeds(record)
    told = [f"{n} of {', '.join(rows)}" for n, rows in by_seeds.items()]
    says = f"Each row: {_seeds(record)}." if len(by_seeds) == 1 else f"Seeds: {'; '.join(told)}."
    few = " Deviations over so few seeds are rough, and leave out the choice of images."
    return says + few * any(1 < n < 5 for n in by_seeds)


def _brief(found: Sequence[Comparison]) -> str:
    return f"**{_word(found)}** ({_counts(found)})" if found else "not run or not learned"


def _word(found: Sequence[Comparison]) -> str:
    word = outcome(found)
    return "yes" if word == "holds" else word


def _counts(found: Sequence[Comparison]) -> str:
    return f"of {len(found)}, {counted(found, 'none beyond chance')}"


def _recipe(record: Record) -> str:
    epochs = max(len(run["course"]["train_loss"]) for run in record["runs"])
    named = "Table 1's recipe" if record["recipe"]["name"] == "table1" else f"{record['recipe']['name']} recipe"
    return f"{named}, {epochs} epoch{'s' * (epochs > 1)}"


def _part(record: Record, steps: Mapping[str, Any]) -> str:
    rows = rows_of(record)
    missing = [row.name for row in TABLES[record["table"]] if row.name not in rows]
    lines = [
        f"## {_TITLES[record['table']]}, protocol `{record['protocol']}`, {_recipe(record)}",
        "",
        f"{how(record)} {_seeds_by_row(record)} The paper's numbers stand in brackets.",
        "",
        f"To redo it: {', then '.join(f'`{command}`' for command in commands(record))}",
        "",
        *([f"Not run here: {', '.join(missing)}.", ""] if missing else []),
        *_tables(marked_tables(record)),
        *_idle(record),
        *_failed(record),
        *_departures(record),
        *[_claim(record, claim) for claim in claims(record["table"])],
        *percentages(record),
        *course(record),
        *cost(record, steps),
        *where_sigma_went(record),
        *live(record),
        *_tables(states_tables(record)),
        "### What makes the figures doubtful",
        "",
        "In how many runs each check of `trust` failed, on " + _trusted(record),
        "",
        markdown(findings_table(record)),
        "",
        *_failures(record),
    ]
    return "\n".join(lines)


def commands(record: Record) -> list[str]:
    """The commands that redo a record, but for folders: one for each number of seeds."""
    asked = {
        **_training(record, record["table"]),
        "judge": record["judged_in"],
        "test-images": record["data"]["test_images"],
    }
    found: list[str] = []
    for seeds, rows in _by_seeds(record).items():
        only = {} if len(rows) == len(TABLES[record["table"]]) else {"models": " ".join(rows)}
        found.append(_command(record["table"], {**asked, "seeds": seeds, **only}))
    return found


def _training(record: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The options that decide how the networks of a record, of a table or of Figure 4, are trained."""
    base = "released-code" if record["protocol"].startswith("released-code") else "paper"
    whole = set(departures(table)) if base == "released-code" else set[str]()
    return {
        "protocol": "" if base == "paper" else base,
        "switch": " ".join(sorted(whole ^ set(record["departures"]))),
        "recipe": record["recipe"]["name"],
        "epochs": record["recipe"]["epochs"],
        "precision": record["recipe"]["precision"],
    }


def _command(what: str, options: Mapping[str, Any]) -> str:
    told = " ".join(f"--{name} {value}" for name, value in options.items() if value)
    return f"noiseprop reproduce {what} {told}"


def _by_seeds(record: Record) -> dict[int, list[str]]:
    """The rows by their number of seeds, the least first."""
    counts = {row: len(runs_of(record, row)) for row in rows_of(record)}
    return {n: [row for row, count in counts.items() if count == n] for n in sorted(set(counts.values()))}


def _tables(tables: Sequence[Rows]) -> list[str]:
    return [line for rows in tables for line in (markdown(rows), "")]


def _idle(record: Record) -> list[str]:
    """Which networks have not learned, and what that means."""
    told = [f"{row} ({cell(record, row, 'clean')})" for row in guessing(record)]
    if not told:
        return []
    says = f"On clean images {listed(told)} {'is' if len(told) == 1 else 'are'} not shown to do better than guessing "
    says += f"({chance(record):.3f}). What is left under attack then says nothing of robustness, and the comparisons "
    says += f"below leave {'it' if len(told) == 1 else 'them'} out."
    return [says, ""]


def _failed(record: Record) -> list[str]:
    """Which white-box attacks failed on which networks, and what that means."""
    told: list[str] = []
    for row, attacks in failed_attacks(record).items():
        for attack in attacks:
            other = cell(record, row, f"{attack}-transfer")
            told.append(f"{COLUMNS[attack]} on {row} leaves {cell(record, row, attack)}, by transfer {other}")
    if not told:
        return []
    says = f"White-box attacks that failed: {'; '.join(told)}. With the network's own gradients such an attack did "
    says += "less than one made on another network, so what it leaves measures the attack, and is no robustness; the "
    says += "comparisons and percentages below leave it out."
    if record["judged_in"] == "bf16":
        says += " What judging in bf16 changes is told at the end of this page."
    return [says, ""]


def _departures(record: Record) -> list[str]:
    if not record["departures"]:
        return []
    told = departures(record["table"])
    return ["Departures from the paper:", "", *(f"- `{name}`: {told[name]}." for name in record["departures"]), ""]


def _claim(record: Record, claim: Claim) -> str:
    found = comparisons(record, claim)
    heading = f"### {claim.sentence}?"
    if not found:
        return f"{heading}\n\nThe rows that would tell are not run here, or have not learned.\n"
    rows = [["", *(COLUMNS[what] for what in claim.what)]]
    for first, second in claim.pairs:
        cells = {c.what: _cell(c) for c in found if (c.first, c.second) == (first, second)}
        if cells:
            rows.append([f"{first} against {second}", *(cells.get(what, "–") for what in claim.what)])
    return "\n".join([heading, "", _answer(record, claim, found), "", _CELLS, "", markdown(rows), ""])


def _answer(record: Record, claim: Claim, found: Sequence[Comparison]) -> str:
    kinds = sorted({"the spread over seeds" if over_seeds(c) else "the choice of images" for c in found})
    of = " or, where both networks have several seeds, ".join(kinds)
    says = f"**{_word(found).capitalize()}** ({_counts(found)}; chance is {of})."
    low = sum(guesses(record, c.first, c.what) and guesses(record, c.second, c.what) for c in found)
    if low:
        says += f" Between accuracies not shown to be better than guessing ({chance(record):.3f}), where neither "
        says += f"network is of use: {low} of the {len(found)} differences."
    printed = [c.printed for c in found if c.printed is not None]
    if claim.sentence in DENIED:
        says += " The paper says that it does not"
        if above := sum(gain > 0 for gain in printed):
            says += f", though its own table has {above} of these {len(printed)} differences above 0"
        return f"{says}."
    if contrary := sum(gain <= 0 for gain in printed):
        says += f" The paper's own table has {contrary} of these {len(printed)} differences not as claimed."
    return says


def _cell(c: Comparison) -> str:
    error = "" if c.error is None else f" ± {c.error:.3f}"
    p = "" if c.p_value is None else "; p < 0.001" if c.p_value < 0.001 else f"; p = {c.p_value:.3f}"
    return f"{c.gain:+.3f}{error}{p}" + ("" if c.printed is None else f" ({c.printed:+.3f})")


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


def _unlearned(figure: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """The networks of a Figure 4 that do no better than guessing by the table of the same runs, if it is there."""
    same = ("protocol", "recipe", "source")
    runs = [r for r in records if r["table"] == "table6" and all(r.get(key) == figure[key] for key in same)]
    return [row for record in runs for row in guessing(record)]


def _figure(name: str, record: Mapping[str, Any], unlearned: Sequence[str]) -> str:
    seen = ", ".join(record["networks"])
    lines = [
        f"## Figure 4: saliency, protocol `{record['protocol']}`",
        "",
        f"![Images and saliency maps of {seen}](../results/{name}.svg)",
        "",
        says(record),
        "",
        f"To redo it, after the table: `{_command('figure4', _training(record, 'table6'))}`",
        "",
    ]
    if unlearned:
        lines += [
            f"By Table 6 {listed(unlearned)} {'is' if len(unlearned) == 1 else 'are'} not shown to do better than "
            "guessing; a map of such a network does not show what tells the classes apart.",
            "",
        ]
    if "inside" in record:
        lines += [
            "The paper says that optimised noise makes the network look more at the object. "
            f"{_looks(record, unlearned)}",
            "",
            "Mean ± standard deviation over images. Differences are means on the same images, with 95 % intervals that "
            "speak of the choice of images, not of other trainings. A map that is the same everywhere has the box's "
            "share; one that favours the middle, where many boxes are, has more.",
            "",
            markdown(shares_table(record)),
            "",
        ]
    return "\n".join(lines)


def _looks(record: Mapping[str, Any], unlearned: Sequence[str]) -> str:
    """What becomes of that claim: for each network with learned noise, whether its interval excludes 0."""
    plain, *others = record["networks"]
    told: list[str] = []
    for name in others:
        found = difference(record, name, plain)
        if name.endswith("N") and found is not None and not {name, plain} & set(unlearned):
            word = "more at it than" if found.low > 0 else "less at it than" if found.high < 0 else ""
            told.append(f"{name} looks {word} {plain}" if word else f"it stays open whether {name} looks more at it")
    return f"Here {listed(told)}." if told else "No networks here can tell, as too few have learned or have maps."
