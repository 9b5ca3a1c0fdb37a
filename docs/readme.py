"""Put results into README.md and the quickstart: `python docs/readme.py`, after `noiseprop demo --out results`."""

from pathlib import Path

from noiseprop.files.records import read_record
from noiseprop.paper.demo import DemoRecord
from noiseprop.paper.demo_report import describe_demo, draw_demo, tabulate_demo
from noiseprop.paper.page import tabulate_verdicts
from noiseprop.paper.results import TableResult, read_table
from noiseprop.paper.tables import format_markdown

ROOT = Path(__file__).parent.parent
README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
DEMO, PICTURE = ROOT / "results" / "demo.json", ROOT / "results" / "demo.png"
CLAIMS = [ROOT / "results" / f"table3-{protocol}.json" for protocol in ("paper", "released-code")]

CLAIMS_MARK = "<!-- made by docs/readme.py from results/table3-*.json -->"
DEMO_MARK = "<!-- made by docs/readme.py from results/demo.json -->"
END = "<!-- end -->"


def claims_block(records: list[TableResult]) -> str:
    """Return the verdicts on the claims about Table 3, for README.md."""
    return format_markdown(tabulate_verdicts(records))


def demo_table(record: DemoRecord) -> str:
    """Return the table of the demo, for README.md."""
    return format_markdown(tabulate_demo(record))


def demo_block(record: DemoRecord) -> str:
    """Return the table of the demo with its notes, for the quickstart."""
    made = record.made_with
    threads = f"{made.threads} thread" + "s" * (made.threads > 1)
    where = f"It took {record.seconds:.0f} s with {threads} of {made.processor}, torch {made.torch}."
    return "\n".join([demo_table(record), "", *describe_demo(record), where])


def updated(text: str, mark: str, block: str) -> str:
    """Return a page with this block between its marks."""
    before, begin, rest = text.partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page lacks the marks {mark} and {END}")
    return f"{before}{mark}\n{block}\n{END}{after}"


def main() -> None:
    """Write both pages and the picture."""
    record = read_record(DEMO, DemoRecord)
    draw_demo(record, PICTURE)
    claims = claims_block([read_table(path) for path in CLAIMS])
    blocks = (
        (README, CLAIMS_MARK, claims),
        (README, DEMO_MARK, demo_table(record)),
        (QUICKSTART, DEMO_MARK, demo_block(record)),
    )
    for page, mark, block in blocks:
        page.write_text(updated(page.read_text(), mark, block))


if __name__ == "__main__":
    main()
