"""Write docs/reproduction.md and Figure 3 from results/table*.json and figure4*.json: `python docs/reproduction.py`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseprop.files.atomic import write_aside
from noiseprop.paper import page_resnets
from noiseprop.paper.figure4 import read_figure_4
from noiseprop.paper.figures import draw_figure_3
from noiseprop.paper.page import INTRODUCTION, page
from noiseprop.paper.reasons import BENCHMARKS
from noiseprop.paper.results import Record, read_record

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "reproduction.md"


def records() -> list[Record]:
    """Every record of results/ that is of all digits; those of mnist-5k are for a quick look."""
    found = [read_record(path) for path in sorted(RESULTS.glob("table[34]-*.json"))]
    return [record for record in found if record["data"]["name"] == "mnist"]


def resnets() -> list[Record]:
    """Every record of the ResNets' tables."""
    return [read_record(path) for path in sorted(RESULTS.glob("table[56]-*.json"))]


def saliency() -> dict[str, Mapping[str, Any]]:
    """Every record of Figure 4 by the name of its files."""
    return {path.stem: read_figure_4(path) for path in sorted(RESULTS.glob("figure4-*.json"))}


def precisions() -> str:
    """The part about what judging in bf16 changes, where there are both records of it."""
    found = [RESULTS / f"precision-table5-{name}.json" for name in ("bf16", "fp32")]
    half, single = (read_record(path) if path.exists() else None for path in found)
    return page_resnets.judged_twice(half, single) if half and single else ""


def document() -> str:
    """The whole page: MNIST's part, then the ResNets', each where there are results; empty where there are none."""
    parts = [page(records(), steps()), page_resnets.page(resnets(), saliency(), steps()), precisions()]
    return "\n".join([INTRODUCTION, *filter(None, parts)]) if any(parts) else ""


def steps() -> dict[str, Any]:
    """What the benchmarks of a training step found, by name; those that were not made are left out."""
    paths = {name: RESULTS / "benchmarks" / f"{name}.json" for name in BENCHMARKS.values()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def main() -> None:
    """Write the page and its figures."""
    text = document()
    if not text:
        raise SystemExit(f"{RESULTS} holds no table*.json; run `noiseprop reproduce table3` first")
    for record in records():
        if record["table"] == "table3":
            draw_figure_3(record, RESULTS / f"figure3-{record['protocol']}")
    write_aside(PAGE, lambda aside: aside.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
