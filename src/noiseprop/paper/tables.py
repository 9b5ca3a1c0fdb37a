"""Tables of a record: our figures with their ± beside the paper's."""

from collections.abc import Sequence

from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import Record, cell, count, runs_of

Rows = list[list[str]]

STATES = {"off": "noise off", "one": "one draw", "vote": "vote"}

# the paper's columns, in tables that fit a page
_GROUPS = {"white box": ("clean", *ATTACKS), "corrupted": CORRUPTIONS, "black box": TRANSFERS}


def rows_of(record: Record) -> list[str]:
    """The table's rows that the record has, in the paper's order."""
    there = {run["row"] for run in record["runs"]}
    return [row for row in PUBLISHED[record["table"]] if row in there]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    Examples:
        >>> listed(["MLP", "MLP+", "MLPN"]), listed(["MLP"])
        ('MLP, MLP+ and MLPN', 'MLP')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def main_table(record: Record) -> Rows:
    """The paper's table: for each row our mean ± standard deviation over seeds, the paper's number in brackets.

    A random network is scored by one draw; its white-box attacks averaged over the most draws that there are.
    """
    rows = [["", *COLUMNS.values()]]
    for name in rows_of(record):
        cells = [f"{cell(record, name, c)} ({PUBLISHED[record['table']][name][c]:.3f})" for c in COLUMNS]
        rows.append([name, *cells])
    return rows


def main_tables(record: Record) -> list[Rows]:
    """The same in three tables, each named in its corner: clean and white box, corrupted, black box."""
    head, *rows = main_table(record)
    places = {condition: place for place, condition in enumerate(COLUMNS, 1)}
    tables: list[Rows] = []
    for title, group in _GROUPS.items():
        kept = [places[condition] for condition in group]
        heading = [title, *(head[i].removesuffix(f", {title}") for i in kept)]
        tables.append([heading, *([row[0], *(row[i] for i in kept)] for row in rows)])
    return tables


def marked_tables(record: Record) -> list[Rows]:
    """The same with † at networks of which a check of `trust` found something doubtful."""
    doubtful = {run["row"] for run in record["runs"] if any(f["outcome"] == "failed" for f in run["findings"])}
    return [
        [[name + (" †" if name in doubtful else ""), *cells] for name, *cells in table] for table in main_tables(record)
    ]


def states_tables(record: Record) -> list[Rows]:
    """Random networks in each of their states: under white-box attacks of each number of draws, and on other images.

    Figures of fewer images than with the noise off come with their n.
    """
    others = ("clean", *CORRUPTIONS, *TRANSFERS)
    white: Rows = [["", "scored by", "attack", *(COLUMNS[c] for c in ATTACKS)]]
    rest: Rows = [["", "scored by", *(COLUMNS[c] for c in others)]]
    for name in rows_of(record):
        if not runs_of(record, name)[0]["noisy"]:
            continue
        for state, says in STATES.items():
            for draws in record["settings"]["attack_draws"] if state != "off" else [0]:
                cells = [_cell_and_n(record, name, c, state, draws) for c in ATTACKS]
                white.append([name, says, f"EOT-{draws}" if draws else "without noise", *cells])
            rest.append([name, says, *(_cell_and_n(record, name, c, state, 0) for c in others)])
    return [white, rest] if len(rest) > 1 else []


def _cell_and_n(record: Record, name: str, condition: str, state: str, draws: int) -> str:
    run, shown = runs_of(record, name)[-1], cell(record, name, condition, state=state, draws=draws)
    n = count(run, condition, state=state, draws=draws)
    return shown if n >= count(run, condition, state="off", draws=0) else f"{shown} (n = {n:,})"


def findings_table(record: Record) -> Rows:
    """For each row and check of `trust`, in how many of the runs it failed."""
    checks = [finding["name"] for finding in record["runs"][0]["findings"]]
    rows = [["", *checks]]
    for name in rows_of(record):
        runs = runs_of(record, name)
        cells: list[str] = []
        for number in range(len(checks)):
            outcomes = [run["findings"][number]["outcome"] for run in runs]
            applied = [outcome for outcome in outcomes if outcome != "not applicable"]
            cells.append(f"{applied.count('failed')} of {len(applied)}" if applied else "–")
        rows.append([name, *cells])
    return rows


def markdown(rows: Rows) -> str:
    """A Markdown table; the first row is its heading. No line is broken between a figure and its ±.

    Examples:
        >>> print(markdown([["", "clean"], ["MLP", "0.97"]]))
        |   | clean |
        | --- | ---: |
        | MLP | 0.97 |
    """
    head, *body = rows
    marks = ["---", *["---:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(text or " " for text in row) + " |" for row in [head, marks, *body]]
    return "\n".join(lines).replace(" ± ", "\u00a0±\u00a0")
