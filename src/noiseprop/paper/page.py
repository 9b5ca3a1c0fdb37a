"""Page docs/reproduction.md: results prepared for its templates, which hold the prose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.paper import explanations
from noiseprop.paper.comparison import (
    CLAIMS,
    HEADINGS,
    Claim,
    Comparison,
    chance_level,
    compare_claim,
    count_differences,
    find_failed_attacks,
    find_guessing,
    is_guess,
    judge_claim,
)
from noiseprop.paper.explanations import BENCHMARKS, StepCost
from noiseprop.paper.figure4 import SaliencyResult, compare_shares, tabulate_shares
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import RunResult, TableResult
from noiseprop.paper.specs import DEPARTURES, RESNETS, TABLES, TITLES, Row, list_departures
from noiseprop.paper.tables import (
    Rows,
    format_markdown,
    join_names,
    split_accuracies,
    tabulate_findings,
    tabulate_states,
)


@dataclass(frozen=True)
class ClaimView:
    """Comparisons of a claim, prepared for the template."""

    claim: Claim
    comparisons: Sequence[Comparison]
    table: Rows
    guesses: int
    contrary: int

    @property
    def verdict(self) -> str:
        """Return the verdict on the claim."""
        return judge_claim(self.comparisons)

    @property
    def counts(self) -> str:
        """Return how many comparisons there are, and how they came out."""
        return count_differences(self.comparisons)

    @property
    def is_about_epochs(self) -> bool:
        """Return whether numbers of epochs are compared."""
        return self.claim.conditions[0] not in COLUMNS

    @property
    def bases(self) -> list[str]:
        """Return the kinds of sampling that the tests reflect."""
        return sorted({c.basis for c in self.comparisons})


@dataclass(frozen=True)
class RunSettings:
    """Settings of the runs of a table in numbers, prepared for the template."""

    record: TableResult

    @property
    def epochs(self) -> str:
        """Return the number of epochs, or its range."""
        counts = sorted({run.course.epochs for run in self.record.runs})
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"

    @property
    def attacked(self) -> int:
        """Return the number of images under attack."""
        return min(self.record.settings.attack_images, self.record.data.test_images)

    @property
    def draws(self) -> int:
        """Return the largest number of noise draws of an attack."""
        return max(self.record.settings.attack_draws)

    @property
    def attacked_by_draws(self) -> dict[int, list[str]]:
        """Return the rows by the number of images that were attacked over the largest number of draws."""
        return self._group_rows({row: self._count_images(row, 0, "pgd", self.draws) for row in self.record.rows})

    @property
    def votes(self) -> dict[int, list[str]]:
        """Return the rows by the number of images on which they voted, if that is not all."""
        counts = {row: self._count_images(row, -1, "clean", 0, "vote") for row in self.record.rows}
        few = {row: count for row, count in counts.items() if count < self.record.data.test_images}
        return self._group_rows(few)

    @property
    def surrogate(self) -> str:
        """Return the name of the architecture of the surrogate, if it is a ResNet."""
        return TABLES[self.record.table][0].name if self.record.table in RESNETS else ""

    def _count_images(self, row: str, place: int, condition: str, draws: int, state: str = "one") -> int:
        run: RunResult = self.record.find_runs(row)[place]
        return next(
            (s.images for s in run.scores if (s.condition, s.state, s.attack_draws) == (condition, state, draws)), 0
        )

    def _group_rows(self, counts: Mapping[str, int]) -> dict[int, list[str]]:
        return {n: [row for row in counts if counts[row] == n] for n in dict.fromkeys(counts.values()) if n}


@dataclass(frozen=True)
class TableView:
    """Part of the page about one table, prepared for the template."""

    record: TableResult
    cost: StepCost | None

    @property
    def title(self) -> str:
        """Return the title of the table."""
        return TITLES[self.record.table]

    @property
    def is_resnet(self) -> bool:
        """Return whether the networks are ResNets."""
        return self.record.table in RESNETS

    @property
    def settings(self) -> str:
        """Return the settings of the runs in sentences."""
        return describe_settings(self.record)

    @property
    def rows_by_seeds(self) -> dict[int, list[str]]:
        """Return the rows by their number of seeds, the smallest first."""
        return group_rows_by_seeds(self.record)

    @property
    def missing(self) -> list[str]:
        """Return the rows without runs."""
        return [row.name for row in TABLES[self.record.table] if row.name not in self.record.rows]

    @property
    def departures(self) -> dict[str, str]:
        """Return the departures from the paper with their descriptions."""
        known = list_departures(self.record.table)
        return {name: known[name] for name in self.record.departures}

    @property
    def claims(self) -> list[ClaimView]:
        """Return the claims about the table."""
        return [view_claim(self.record, claim) for claim in CLAIMS[self.record.table]]

    @property
    def failed_attacks(self) -> dict[str, list[str]]:
        """Return the white-box attacks that failed, by row; none for MNIST, whose comparisons include them."""
        return find_failed_attacks(self.record) if self.is_resnet else {}

    @property
    def trust_images(self) -> dict[int, list[str]]:
        """Return the rows by the number of images of their sanity checks."""
        counts = self.record.trust_images
        return {n: [row for row in counts if counts[row] == n] for n in dict.fromkeys(counts.values())}

    @property
    def failed_checks(self) -> list[str]:
        """Return the first failure of each row and sanity check."""
        found: dict[tuple[str, str], str] = {}
        for run in (run for row in self.record.rows for run in self.record.find_runs(row)):
            for finding in (finding for finding in run.findings if finding.outcome == "failed"):
                found.setdefault((run.row, finding.name), f"{run.row}, seed {run.seed}: {finding.sentence}")
        return list(found.values())


@dataclass(frozen=True)
class SaliencyView:
    """Part of the page about Figure 4; `unlearned` are networks that may be guessing."""

    name: str
    record: SaliencyResult
    command: str
    unlearned: list[str]

    @property
    def tendencies(self) -> list[tuple[str, str]]:
        """Return networks with learned noise, and whether they look more, less or perhaps at the object."""
        plain, *others = self.record.networks
        found: list[tuple[str, str]] = []
        for name in others:
            difference = compare_shares(self.record, name, plain)
            if Row(name).has_learned_noise and difference is not None and not {name, plain} & set(self.unlearned):
                found.append((name, "more" if difference.low > 0 else "less" if difference.high < 0 else "open"))
        return found


def render_page(
    records: Sequence[TableResult],
    figures: Mapping[str, SaliencyResult] | None = None,
    costs: Mapping[str, StepCost] | None = None,
    precisions: tuple[TableResult, TableResult] | None = None,
) -> str:
    """Return the page: summary, protocols, tables, Figure 4 and the effect of evaluation in bf16.

    Args:
        records: results of tables.
        figures: results of Figure 4 by the names of their files without suffix.
        costs: costs of a training step by the name of the benchmark.
        precisions: results of the same networks, evaluated in bf16 and in fp32.
    """
    if not (records or figures):
        return ""
    ordered = sorted(records, key=lambda r: (r.table, r.protocol != "paper", r.protocol, name_recipe(r)))
    views = [TableView(r, (costs or {}).get(BENCHMARKS.get(r.table, ""))) for r in ordered]
    saliency = [view_saliency(name, figure, ordered) for name, figure in sorted((figures or {}).items())]
    half, single = precisions or (None, None)
    by_table = {table: [record for record in ordered if record.table == table] for table in TABLES}
    return _render_template(
        "page.md.j2",
        tables=views,
        summary=summarize_claims([record for record in ordered if record.protocol == "paper"]),
        overviews=[tabulate_verdicts(group) for group in by_table.values() if len(group) > 1],
        figures=saliency,
        departures=DEPARTURES,
        precision=render_precisions(half, single) if half and single else "",
    )


def describe_settings(record: TableResult) -> str:
    """Return recipe, data and numbers of images of a table in sentences."""
    return " ".join(_render_template("settings.j2", record=record, runs=RunSettings(record)).split())


def summarize_claims(records: Sequence[TableResult]) -> Rows:
    """Return for each claim of the paper its verdict in each of some tables."""
    sentences = list(dict.fromkeys(claim.sentence for record in records for claim in CLAIMS[record.table]))
    rows: Rows = [["claim of the paper", *(f"{TITLES[r.table]}, {name_recipe(r)}, {count_seeds(r)}" for r in records)]]
    for sentence in sentences:
        cells: list[str] = []
        for record in records:
            claim = next((claim for claim in CLAIMS[record.table] if claim.sentence == sentence), None)
            cells.append("–" if claim is None else format_verdict(record, claim))
        rows.append([sentence, *cells])
    return rows


def tabulate_verdicts(records: Sequence[TableResult]) -> Rows:
    """Return for each claim about one table its verdict, with a column for each result."""
    table = records[0].table
    names = [f"`{r.protocol}`{', ' + name_recipe(r) if table in RESNETS else ''}, {count_seeds(r)}" for r in records]
    rows: Rows = [[TITLES[table], *names]]
    for claim in CLAIMS[table]:
        sentence = f"{claim.sentence} (the paper: no)" if claim.denied else claim.sentence
        rows.append([sentence, *(format_verdict(record, claim) for record in records)])
    return rows


def format_verdict(record: TableResult, claim: Claim) -> str:
    """Return the verdict on a claim with its counts."""
    found = compare_claim(record, claim)
    if not found:
        return "not run or not learned"
    word = judge_claim(found)
    return f"{word if word == 'untested' else f'**{word}**'} ({count_differences(found)})"


def view_claim(record: TableResult, claim: Claim) -> ClaimView:
    """Return the comparisons of a claim with their table: a row for each pair, a column for each condition."""
    found = compare_claim(record, claim)
    table: Rows = [["", *(HEADINGS[condition] for condition in claim.conditions)]]
    for first, second in claim.pairs:
        cells = {c.condition: format_comparison(c) for c in found if (c.first, c.second) == (first, second)}
        if cells:
            table.append([f"{first} against {second}", *(cells.get(c, "–") for c in claim.conditions)])
    guesses = sum(all(is_guess(record, row, c.condition) for row in (c.first, c.second)) for c in found if c.printed)
    wrong_sign = [c for c in found if c.printed is not None and (c.printed > 0) == claim.denied]
    return ClaimView(claim, found, table, guesses, len(wrong_sign))


def format_comparison(c: Comparison) -> str:
    """Return gain ± error, p and the printed gain, or two numbers of epochs and p."""
    p = "" if c.p_value is None else "; p < 0.001" if c.p_value < 0.001 else f"; p = {c.p_value:.3f}"
    if c.printed is None:
        return ", ".join(f"{s.mean:.1f}" + (f" ± {s.std:.1f}" if s.std is not None else "") for s in c.spreads) + p
    return f"{c.gain:+.3f} ± {c.error:.3f}{p} ({c.printed:+.3f})"


def render_precisions(half: TableResult, single: TableResult) -> str:
    """Return the part about evaluation in bf16: the same networks and images, evaluated in bf16 and in fp32."""
    rows, apart = [["bf16 / fp32", *COLUMNS.values()]], list[str]()
    for row in half.rows:
        cells: list[str] = []
        for condition, title in COLUMNS.items():
            a, b = (record.find_runs(row)[0].accuracy(condition) for record in (half, single))
            cells.append(f"{a:.3f} / {b:.3f}")
            if abs(a - b) > TOLERANCE:
                apart.append(f"{title} on {row}")
        rows.append([row, *cells])
    return _render_template(
        "precision.md.j2",
        title=TITLES[half.table],
        record=half,
        table=rows,
        apart=apart,
        tolerance=TOLERANCE,
        failed=[_name_attacks(find_failed_attacks(record)) for record in (half, single)],
        commands=[command for record in (half, single) for command in list_commands(record)],
    )


def _name_attacks(attacks: Mapping[str, Sequence[str]]) -> str:
    names = [f"{COLUMNS[attack]} on {row}" for row, found in attacks.items() for attack in found]
    return "; ".join(names) or "none"


def group_rows_by_seeds(record: TableResult) -> dict[int, list[str]]:
    """Return the rows by their number of seeds, the smallest first."""
    counts = {row: len(record.find_runs(row)) for row in record.rows}
    return {n: [row for row, count in counts.items() if count == n] for n in sorted(set(counts.values()))}


def count_seeds(record: TableResult) -> str:
    """Return the number of seeds, or its range."""
    counts = list(group_rows_by_seeds(record))
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{many} seed{'' if counts == [1] else 's'}"


def name_recipe(record: TableResult) -> str:
    """Return the recipe of a table and its number of epochs."""
    epochs = RunSettings(record).epochs
    name = "Table 1's recipe" if record.recipe.name == "table1" else f"{record.recipe.name} recipe"
    return f"{name}, {epochs} epoch{'s' * (epochs != '1')}"


def list_commands(record: TableResult) -> list[str]:
    """Return the commands that redo a table, apart from folders: one for each number of seeds."""
    found: list[str] = []
    for seeds, rows in group_rows_by_seeds(record).items():
        options = _list_training_options(record, record.table, record.epochs)
        options += [("judge", record.judged_in)]
        if record.data.test_images < record.data.test:
            options += [("test-images", str(record.data.test_images))]
        options += [("seeds", str(seeds))]
        options += [] if len(rows) == len(TABLES[record.table]) else [("models", " ".join(rows))]
        found.append(_format_command(record.table, options))
    return found


def _list_training_options(record: TableResult | SaliencyResult, table: str, epochs: int) -> list[tuple[str, str]]:
    released = record.protocol.startswith("released-code")
    base = set(list_departures(table)) if released else set[str]()
    return [
        ("protocol", "released-code" if released else ""),
        ("switch", " ".join(sorted(base ^ set(record.departures)))),
        ("recipe", record.recipe.name),
        ("epochs", str(epochs)),
        ("precision", record.recipe.precision),
    ]


def _format_command(target: str, options: Sequence[tuple[str, str]]) -> str:
    return f"noiseprop reproduce {target} " + " ".join(f"--{name} {value}" for name, value in options if value)


def view_saliency(name: str, figure: SaliencyResult, records: Sequence[TableResult]) -> SaliencyView:
    """Return the part about a Figure 4, with the networks that may be guessing by the table of the same runs."""
    key = (figure.protocol, figure.recipe, figure.source)
    same = [r for r in records if r.table == "table6" and (r.protocol, r.recipe, r.data.source) == key]
    command = _format_command("figure4", _list_training_options(figure, "table6", figure.recipe.epochs))
    return SaliencyView(name, figure, command, [row for record in same for row in find_guessing(record)])


def _render_template(template: str, **values: object) -> str:
    return _ENVIRONMENT.get_template(template).render(**values)


_ENVIRONMENT = Environment(
    loader=PackageLoader("noiseprop", "paper/templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - Markdown
)
_GLOBALS: dict[str, Any] = {
    "explain": explanations,
    "columns": COLUMNS,
    "chance_level": chance_level,
    "find_guessing": find_guessing,
    "list_commands": list_commands,
    "name_recipe": name_recipe,
    "count_seeds": count_seeds,
    "split_accuracies": split_accuracies,
    "tabulate_findings": tabulate_findings,
    "tabulate_shares": tabulate_shares,
    "tabulate_states": tabulate_states,
}
_ENVIRONMENT.globals.update(_GLOBALS)
_ENVIRONMENT.filters.update(markdown=format_markdown, join_names=join_names)
