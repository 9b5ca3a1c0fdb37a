"""Tables of a result: accuracies with their ± beside those of the paper, states of the noise, and sanity checks."""

from collections.abc import Sequence

from noiseprop.evaluation.results import State
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import TableResult

Rows = list[list[str]]

_STATE_NAMES: dict[State, str] = {"off": "noise off", "one": "one draw", "vote": "vote"}
_GROUPS = {"white box": ("clean", *ATTACKS), "corrupted": CORRUPTIONS, "black box": TRANSFERS}


def join_names(names: Sequence[str]) -> str:
    """Return names as in a sentence.

    Examples:
        >>> join_names(["MLP", "MLP+", "MLPN"]), join_names(["MLP"])
        ('MLP, MLP+ and MLPN', 'MLP')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def tabulate_accuracies(record: TableResult) -> Rows:
    """Return the table of the paper: for each row our mean ± standard deviation over seeds, then the printed number.

    A random network is scored by one draw; white-box attacks on it average over the largest number of draws.
    """
    rows = [["", *COLUMNS.values()]]
    for name in record.rows:
        cells = [f"{record.format_cell(name, c)} ({record.printed[name][c]:.3f})" for c in COLUMNS]
        rows.append([name, *cells])
    return rows


def split_accuracies(record: TableResult, *, mark: bool = False) -> list[Rows]:
    """Return the same in three tables: clean and white box, corrupted, black box; `mark` adds † for failed checks."""
    head, *rows = tabulate_accuracies(record)
    failed = (
        {run.row for run in record.runs if any(f.outcome == "failed" for f in run.findings)} if mark else set[str]()
    )
    columns = {condition: column for column, condition in enumerate(COLUMNS, 1)}
    tables: list[Rows] = []
    for title, group in _GROUPS.items():
        chosen = [columns[condition] for condition in group]
        heading = [title, *(head[i].removesuffix(f", {title}") for i in chosen)]
        body = [[row[0] + " †" * (row[0] in failed), *(row[i] for i in chosen)] for row in rows]
        tables.append([heading, *body])
    return tables


def tabulate_states(record: TableResult) -> list[Rows]:
    """Return random networks in each state: under white-box attacks of each number of draws, and on other images.

    Figures over fewer images than with the noise off state their n.
    """
    others = ("clean", *CORRUPTIONS, *TRANSFERS)
    white: Rows = [["", "scored by", "attack", *(COLUMNS[c] for c in ATTACKS)]]
    rest: Rows = [["", "scored by", *(COLUMNS[c] for c in others)]]
    for name in record.rows:
        if not record.find_runs(name)[0].noisy:
            continue
        for state, text in _STATE_NAMES.items():
            for draws in record.settings.attack_draws if state != "off" else (0,):
                cells = [_format_with_count(record, name, c, state, draws) for c in ATTACKS]
                white.append([name, text, f"EOT-{draws}" if draws else "without noise", *cells])
            rest.append([name, text, *(_format_with_count(record, name, c, state, 0) for c in others)])
    return [white, rest] if len(rest) > 1 else []


def _format_with_count(record: TableResult, name: str, condition: str, state: State, draws: int) -> str:
    run, shown = record.find_runs(name)[-1], record.format_cell(name, condition, state, draws)
    n = run.find_scores(condition, state, draws)[0].images
    return shown if n >= run.find_scores(condition, "off", 0)[0].images else f"{shown} (n = {n:,})"


def tabulate_findings(record: TableResult) -> Rows:
    """Return for each row and sanity check the number of runs in which it failed."""
    checks = [finding.name for finding in record.runs[0].findings]
    rows = [["", *checks]]
    for name in record.rows:
        cells: list[str] = []
        for number in range(len(checks)):
            outcomes = [run.findings[number].outcome for run in record.find_runs(name)]
            applied = [outcome for outcome in outcomes if outcome != "not applicable"]
            cells.append(f"{applied.count('failed')} of {len(applied)}" if applied else "–")
        rows.append([name, *cells])
    return rows


def format_markdown(rows: Rows) -> str:
    """Return a Markdown table whose first row is the heading; no line breaks between a figure and its ±.

    Examples:
        >>> print(format_markdown([["", "clean"], ["MLP", "0.97"]]))
        |   | clean |
        | --- | ---: |
        | MLP | 0.97 |
    """
    head, *body = rows
    marks = ["---", *["---:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(text or " " for text in row) + " |" for row in [head, marks, *body]]
    return "\n".join(lines).replace(" ± ", "\u00a0±\u00a0")
