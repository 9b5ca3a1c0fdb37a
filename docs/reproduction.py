"""Write docs/reproduction.md and Figure 3 from the results of tables and Figure 4: `python docs/reproduction.py`."""

from pathlib import Path

from noiseprop.files.atomic import write_aside
from noiseprop.paper.explanations import read_step_costs
from noiseprop.paper.figure4 import SaliencyResult, read_figure_4
from noiseprop.paper.figures import write_figure_3
from noiseprop.paper.page import render_page
from noiseprop.paper.results import TableResult, read_table

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "reproduction.md"


def read_mnist_tables() -> list[TableResult]:
    """Return the results on all digits; those on mnist-5k are for a quick look."""
    found = [read_table(path) for path in sorted(RESULTS.glob("table[34]-*.json"))]
    return [record for record in found if record.data.name == "mnist"]


def read_resnet_tables() -> list[TableResult]:
    """Return the results of ResNets."""
    return [read_table(path) for path in sorted(RESULTS.glob("table[56]-*.json"))]


def read_saliency() -> dict[str, SaliencyResult]:
    """Return the results of Figure 4 by the name of their files."""
    return {path.stem: read_figure_4(path) for path in sorted(RESULTS.glob("figure4-*.json"))}


def read_precisions() -> tuple[TableResult, TableResult] | None:
    """Return the results of evaluation in bf16 and in fp32, if both exist."""
    half, single = (RESULTS / f"precision-table5-{name}.json" for name in ("bf16", "fp32"))
    return (read_table(half), read_table(single)) if half.exists() and single.exists() else None


def make_page() -> str:
    """Return the page; empty without results."""
    tables = [*read_mnist_tables(), *read_resnet_tables()]
    return render_page(tables, read_saliency(), read_step_costs(RESULTS / "benchmarks"), read_precisions())


def main() -> None:
    """Write the page and its figures."""
    text = make_page()
    if not text:
        raise SystemExit(f"{RESULTS} holds no table*.json; run `noiseprop reproduce table3` first")
    for record in read_mnist_tables():
        if record.table == "table3":
            write_figure_3(record, RESULTS / f"figure3-{record.protocol}")
    write_aside(PAGE, lambda aside: aside.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
