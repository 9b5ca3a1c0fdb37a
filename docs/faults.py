"""Make docs/faults.md: `python docs/faults.py` after NOISEPROP_PUBLISH=1 pytest -m slow tests/faults."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE, LONG_RUN = ROOT / "results" / "faults.json", ROOT / "results" / "benchmarks" / "long_run.json"
PAGE = ROOT / "docs" / "faults.md"

_HEAD = """# Faults

This page lists the tested faults and their outcomes. `tests/faults/` causes each fault of the table on real processes
and files, with small networks and images; a different outcome fails the tests.

- A training resumes from its last finished epoch, an evaluation from its last finished step, a reproduction from both.
  "Resumed to the same bits" means that the files of weights, optimizers and evaluations equal, byte for byte, those of
  an undisturbed run.
- "Reported in one sentence" means exit code 1 and one line on stderr that names the file and the next step; nothing
  that was finished is lost.
- Every file of a run folder, of the caches and of results carries a SHA-256 of its content.
- SIGTERM and Ctrl-C stop a training after its step, an evaluation at once, and the workers of a reproduction at their
  next step. The exit codes are 143 and 130.
- Files are written to a temporary file and renamed, so a full disk never damages an existing file.
- A folder in use is locked. The system releases the lock when the process ends for any reason.
- One of three nodes of a Ray cluster is killed during training. Its run resumes on another node, with the
  results of a local grid. See [Scale](scale.md).
- NaN in a batch stops the training before the epoch is saved; earlier epochs are kept.
"""


def page(table: Mapping[str, Any], long_run: Mapping[str, Any]) -> str:
    """Return the whole page."""
    made = table["made_with"]
    tried = sum(row["tried"] for row in table["faults"])
    where = f"{tried:,} tries, on {made['processor']}, Python {made['python']}, torch {made['torch']}."
    head = ["| fault | times tried | outcome |", "|---|---:|---|"]
    return "\n".join([_HEAD, where, "", *head, *map(_row, table["faults"]), "", *_long_run(long_run)]) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    outcomes = row["outcomes"]
    told = [text if len(outcomes) == 1 else f"{count:,} × {text}" for text, count in outcomes.items()]
    return f"| {row['fault']} | {row['tried']:,} | {'; '.join(told)} |"


def _long_run(long_run: Mapping[str, Any]) -> list[str]:
    figures, machine = long_run["figures"], long_run["machine"]
    lines = [
        "## Long runs",
        "",
        "Resources of one process during long training and evaluation: `python benchmarks/long_run.py`. Resident",
        "memory in MB, open file handles, and temporary files in the run folder and in the system's folder; the",
        "permanent one is the folder of torch's compiler.",
        "",
        "| after | memory | file handles | temporary files |",
        "|---|---:|---:|---:|",
    ]
    for name, samples in figures.items():
        for sample in samples:
            holds = f"{sample['memory']:.1f} | {sample['handles']} | {sample['temporary']}"
            lines.append(f"| {sample['done']:,} {name} | {holds} |")
    return [*lines, "", f"On {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}."]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(TABLE.read_text()), json.loads(LONG_RUN.read_text())))


if __name__ == "__main__":
    main()
