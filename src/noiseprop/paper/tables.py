"""Tables of a record: our figures with their ± beside the paper's."""

from collections.abc import Sequence

from noiseprop.evaluation.settings import ATTACKS
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import Record, runs_of, spread

Rows = list[list[str]]

STATES = {"off": "noise off", "one": "one draw", "vote": "vote"}


def main_table(record: Record) -> Rows:
    """The paper's table: for each row our mean ± standard deviation over seeds, the paper's number in brackets.

    A random network is scored by one draw; its white-box attacks averaged over the most draws that there are.
    """
    rows = [["", *COLUMNS.values()]]
    for name in _names(record):
        cells = [f"{spread(record, name, c)} ({PUBLISHED[record['table']][name][c]:.3f})" for c in COLUMNS]
        rows.append([name, *cells])
    return rows


def states_table(record: Record) -> Rows:
    """Random networks in each of their states, with white-box attacks of each number of draws."""
    rows = [["", "scored by", "attack", *COLUMNS.values()]]
    for name in _names(record):
        if not runs_of(record, name)[0]["noisy"]:
            continue
        for state, says in STATES.items():
            eot = record["settings"]["attack_draws"] if state != "off" else [0]
            for draws in eot:
                cells = [str(spread(record, name, c, state=state, draws=draws if c in ATTACKS else 0)) for c in COLUMNS]
                rows.append([name, says, f"EOT-{draws}" if draws else "without noise", *cells])
    return rows


def findings_table(record: Record) -> Rows:
    """For each row and check of `trust`, in how many of the runs it failed."""
    checks = [finding["name"] for finding in record["runs"][0]["findings"]]
    rows = [["", *checks]]
    for name in _names(record):
        runs = runs_of(record, name)
        cells: list[str] = []
        for number in range(len(checks)):
            outcomes = [run["findings"][number]["outcome"] for run in runs]
            applied = [outcome for outcome in outcomes if outcome != "not applicable"]
            cells.append(f"{applied.count('failed')} of {len(applied)}" if applied else "–")
        rows.append([name, *cells])
    return rows


def markdown(rows: Rows) -> str:
    """A Markdown table; the first row is its heading.

    >>> print(markdown([["", "clean"], ["MLP", "0.97"]]))
    |   | clean |
    | --- | ---: |
    | MLP | 0.97 |
    """
    head, *body = rows
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cell or " " for cell in row) + " |" for row in [head, marks, *body])


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The table with columns aligned, for the terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _names(record: Record) -> list[str]:
    """The table's rows that the record has, in the paper's order."""
    there = {run["row"] for run in record["runs"]}
    return [name for name in PUBLISHED[record["table"]] if name in there]
