"""Put the demo's table and picture into README.md: `python docs/readme.py` after `noiseprop demo --out results`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseprop.paper.demo_picture import draw
from noiseprop.paper.demo_table import heading, notes, rows

ROOT = Path(__file__).parent.parent
RECORD, PICTURE, README = ROOT / "results" / "demo.json", ROOT / "results" / "demo.png", ROOT / "README.md"
BEGIN, END = "<!-- made by docs/readme.py from results/demo.json -->", "<!-- end -->"


def block(record: Mapping[str, Any]) -> str:
    """What stands between the two marks in README.md."""
    head = heading(record)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows(record))]
    made = record["made_with"]
    threads = f"{made['threads']} thread" + "s" * (made["threads"] > 1)
    where = f"It took {made['seconds']:.0f} s with {threads} of {made['processor']}, torch {made['torch']}."
    picture = "![Accuracy under PGD against eps for MLP, MLP+ and MLPN, and MLPN's sigma by layer and epoch]"
    return "\n".join([BEGIN, *lines, "", *notes(record), where, "", f"{picture}(results/demo.png)", END])


def updated(readme: str, record: Mapping[str, Any]) -> str:
    """README.md with the block of this record."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks the marks {BEGIN} and {END}")
    return before + block(record) + after


def main() -> None:
    """Write README.md and the picture."""
    record = json.loads(RECORD.read_text())
    draw(record, PICTURE)
    README.write_text(updated(README.read_text(), record))


if __name__ == "__main__":
    main()
