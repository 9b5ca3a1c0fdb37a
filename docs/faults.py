"""Make docs/faults.md: `python docs/faults.py` after NOISEPROP_PUBLISH=1 pytest -m slow tests/faults."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE, LONG_RUN = ROOT / "results" / "faults.json", ROOT / "results" / "benchmarks" / "long_run.json"
PAGE = ROOT / "docs" / "faults.md"

_HEAD = """# Faults

What happens to a run when the machine does not play along. Each fault of the table is brought about on real processes
and files by `tests/faults/`, on small networks and images; one that ends otherwise than it says here fails the tests.

- A run goes on from its last finished epoch, an evaluation from its last finished step, a reproduction from both. "The
  same bits" means that the files of weights, optimizers and judged images equal, byte for byte, those of a run that
  nothing has disturbed.
- "Told in one sentence" means exit code 1, one line on stderr that names the file and what to do next, and nothing that
  was finished lost.
- Every file of a run folder, of the caches and of results carries a SHA-256 of what it holds. Files of older versions,
  which have none, are read without.
- SIGTERM and Ctrl-C stop a training after its step, an evaluation at once, and the workers of a reproduction at their
  next step. The exit codes are 143 and 130.
- Files are written aside and renamed, so a full disk costs what was about to be written, never what was there.
- A folder in use is locked; the system lets go of the lock when its process ends, however it does.
- Of three nodes of a Ray cluster one is killed while it trains; its run goes on elsewhere, to the results of a local
  grid. See [Scale](scale.md).
- NaN in a batch stops the training before it is kept; the epochs before it are.
"""


def page(table: Mapping[str, Any], long_run: Mapping[str, Any]) -> str:
    """The whole page."""
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
        "What one process holds while it trains and judges for long: `python benchmarks/long_run.py`. Resident memory",
        "in MB, open file handles, and temporary files in the run's folder and in the system's; the one that is there",
        "throughout is the folder of torch's compiler.",
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
