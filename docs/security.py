"""Write the tables of docs/security.md from results/fuzz.json and tests/fuzz/bombs.py: `python docs/security.py`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "results" / "fuzz.json", ROOT / "docs" / "security.md"
MARKS = {
    "bombs": "<!-- made by docs/security.py from tests/fuzz/bombs.py -->",
    "fuzz": "<!-- made by docs/security.py from results/fuzz.json -->",
}
END = "<!-- end -->"


def fuzz_table(record: Mapping[str, Any]) -> str:
    """Return the table of all readers with the defects that fuzzing found."""
    lines = ["| reads | executions | crashes | memory, MB | found and fixed |", "| --- | ---: | ---: | ---: | --- |"]
    for run in record["readers"]:
        found = "; ".join(run["found"]) or "–"
        lines.append(
            f"| `{run['reader']}`: {run['reads']} | {run['executions']:,} | {run['crashes']} | {run['memory_mb']:,} "
            f"| {found} |"
        )
    limits, made = record["limits"], record["made_with"]
    total = sum(run["executions"] for run in record["readers"])
    versions = ", ".join(f"{name} {number}" for name, number in made.items())
    says = (
        f"{total:,} executions in all, with {versions}. {record['asked']:,} per reader were requested; a "
        f"smaller number means that its time ran out. An input may take {limits['seconds']} s of wall-clock time and "
        f"{limits['memory_mb']:,} MB of address space; memory is the peak of the process above "
        "its start, including the fuzzer."
    )
    return "\n".join([*lines, "", says])


def bombs_table() -> str:
    """Return the table of all bombs with their memory limits."""
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.bombs import BOMBS

    lines = ["| a file | may take, MB |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {bomb.says} | {bomb.most} |" for bomb in BOMBS)])


def updated(page: str, record: Mapping[str, Any]) -> str:
    """Return docs/security.md with the tables of this record."""
    for name, table in (("bombs", bombs_table()), ("fuzz", fuzz_table(record))):
        before, begin, rest = page.partition(MARKS[name])
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise SystemExit(f"{PAGE} lacks the marks {MARKS[name]} and {END}")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def main() -> None:
    """Write the page."""
    PAGE.write_text(updated(PAGE.read_text(), json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
