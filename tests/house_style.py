"""Measure how far the source keeps the house style: names, docstrings, idioms, import direction and cycles.

    python tests/house_style.py            the table, with every offender of a figure over its limit
    python tests/house_style.py --all      every offender

`tests/test_house_style.py` holds each figure to the limit in `LIMITS`.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "noiseprop"

LAYERS = (  # from the top; a room imports from its own layer's files and from lower layers only
    ("__main__",),
    ("cli",),
    ("paper", "report"),
    ("runs",),
    ("training", "evaluation", "saliency"),
    ("attacks", "corruptions"),
    ("data", "models"),
    ("noise",),
    ("distributed", "environment", "progress"),
    ("files",),
    ("errors",),
)
SEPARATE = {("paper", "report"), ("training", "evaluation"), ("attacks", "corruptions")}  # never import each other
PAPER_COMMANDS = {"noiseprop.cli.demo", "noiseprop.cli.reproduce"}

IDIOMS = {
    "goes on": r"\b(goes|go|went|gone|going) on\b",
    "is told, tells": r"\b(is|are|was|were) told\b|\b(tells?|telling)\b",
    "what is": r"\bwhat (is|it|the|a|of|stands|comes|came|has|they|would)\b",
    "is no": r"\b(is|are|was|were) no\b",
}
VERBLESS = re.compile(r"(What|Whether|How|Of)\b")
ARTICLE = re.compile(r"(The|A|An)\b")
ONE_WORD = re.compile(r"_?[a-z0-9]+$")

LIMITS: dict[str, float] = {
    "one-word function names": 149,
    "docstrings that start with What, Whether, How or Of": 0,
    "docstrings that start with an article (%)": 5,
    "top-level names defined in several modules (%)": 5,
    "import cycles": 0,
    "imports against the direction": 0,
    "dotted or star imports of private names": 0,
    "files over 350 lines": 4,  # the goal is 0
    **dict.fromkeys((f"idiom: {name}" for name in IDIOMS), 7),
}


@dataclass
class Figure:
    """One measured figure: its value and the places behind it."""

    value: float = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.value += 1
        self.places.append(place)


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module of the package by its dotted name."""
    trees: dict[str, ast.Module] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text())
    return trees


def measure() -> dict[str, Figure]:
    """Return every figure of `LIMITS`, measured now."""
    figures = {name: Figure() for name in LIMITS}
    _measure_functions(figures)
    _measure_collisions(figures["top-level names defined in several modules (%)"])
    _measure_imports(figures)
    _measure_prose(figures)
    return figures


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions and methods, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def count_functions() -> int:
    """Return the number of functions and methods in the package, `__dunder__` methods included."""
    return sum(1 for tree in modules().values() for _ in functions(tree))


def _measure_functions(figures: dict[str, Figure]) -> None:
    docstrings = articles = 0
    for module, tree in modules().items():
        for node in functions(tree):
            place = f"{module}.{node.name}:{node.lineno}"
            if ONE_WORD.match(node.name):
                figures["one-word function names"].add(place)
            if doc := ast.get_docstring(node):
                docstrings += 1
                if VERBLESS.match(doc):
                    figures["docstrings that start with What, Whether, How or Of"].add(place)
                if ARTICLE.match(doc):
                    articles += 1
                    figures["docstrings that start with an article (%)"].places.append(place)
    figures["docstrings that start with an article (%)"].value = round(100 * articles / max(1, docstrings), 1)


def _measure_collisions(figure: Figure) -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in modules().items():
        for name in {name for node in tree.body for name in _defined(node)}:
            homes[name].append(module)
    several = {name: where for name, where in homes.items() if len(where) > 1}
    figure.value = round(100 * len(several) / len(homes), 1)
    figure.places = [f"{name}: {', '.join(where)}" for name, where in sorted(several.items())]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        if not node.name.startswith("__"):
            yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name) and target.id != "__all__")
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield the modules of the package that a module imports, inside functions and for type checkers too."""
    known = modules()
    for node in ast.walk(known[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("noiseprop"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in known else str(node.module)), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)


def _measure_imports(figures: dict[str, Figure]) -> None:
    graph = {module: {target for target, _ in imports(module) if target != module} for module in modules()}
    for cycle in _cycles(graph):
        figures["import cycles"].add(" <-> ".join(cycle))
    for module in modules():
        for target, line in imports(module):
            if _is_upward(module, target):
                figures["imports against the direction"].add(f"{module}:{line} imports {target}")
        for node in ast.walk(modules()[module]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("noiseprop"):
                for alias in node.names:
                    if alias.name == "*" or (alias.name.startswith("_") and not alias.name.startswith("__")):
                        figures["dotted or star imports of private names"].add(f"{module}:{node.lineno} {alias.name}")


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _is_upward(module: str, target: str) -> bool:
    here, there = _room(module), _room(target)
    if not here or not there or here == there:
        return False
    if here == "noise" and there not in ("errors", "files"):
        return True
    if there == "paper" and module not in PAPER_COMMANDS:
        return True
    if any({here, there} == set(pair) for pair in SEPARATE):
        return True
    level = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    return level[here] > level[there]


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component: list[str] = []
            while node not in component:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def _measure_prose(figures: dict[str, Figure]) -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        lines = path.read_text().splitlines()
        where = path.relative_to(ROOT)
        if len(lines) > 350:
            figures["files over 350 lines"].add(f"{where}: {len(lines)}")
        for number, line in enumerate(lines, 1):
            for name, pattern in IDIOMS.items():
                if re.search(pattern, line, re.IGNORECASE):
                    figures[f"idiom: {name}"].add(f"{where}:{number}: {line.strip()[:110]}")


def main() -> None:
    """Print the table, and the places behind figures over their limit."""
    everything = "--all" in sys.argv[1:]
    lines = sum(len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py"))
    paper = sum(len(path.read_text().splitlines()) for path in (SOURCE / "paper").rglob("*.py"))
    figures = measure()
    for name, figure in figures.items():
        over = figure.value > LIMITS[name]
        print(f"{'over' if over else 'ok':4}  {figure.value:>6g}  (limit {LIMITS[name]:g})  {name}")
        if over or everything:
            for place in figure.places:
                print(f"        {place}")
    print(f"{count_functions()} functions, {lines:,} lines in src/noiseprop, {paper:,} in paper/")


if __name__ == "__main__":
    main()
