"""The site: what mkdocs is told, what it is helped with, and that the reference leaves no public name out."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from mkdocs.exceptions import PluginError
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
ROOMS = (
    "noiseprop",
    "noiseprop.attacks",
    "noiseprop.corruptions",
    "noiseprop.data",
    "noiseprop.evaluation",
    "noiseprop.models",
    "noiseprop.noise.objectives",
    "noiseprop.noise.baselines",
    "noiseprop.saliency",
    "noiseprop.training",
)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load_script("docs/hooks.py")


def test_every_page_and_example_is_in_the_navigation():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(navigation)))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    examples = {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")}
    assert listed == pages | examples | {"contributing.md", "changelog.md"}


def public_names(room: str) -> set[str]:
    """Where mkdocstrings finds what a package's `__init__` takes from its modules, or what a module defines."""
    file = Path(str(importlib.import_module(room).__file__))
    tree = ast.parse(file.read_text())
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    if file.name == "__init__.py":
        taken = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names |= {alias.name for node in taken if str(node.module).startswith("noiseprop") for alias in node.names}
    modules = {path.stem for path in file.parent.glob("*.py")}  # one of a function's name would be shown in its place
    return {f"{room}.{n}.{n}" if n in modules else f"{room}.{n}" for n in names if not n.startswith("_")}


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(room: str):
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    told = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    names = public_names(room)
    assert names
    assert names <= told


def test_formulas_become_mathml(hooks: ModuleType):
    page = '<span class="arithmatex">\\(a &lt; b\\)</span> and <div class="arithmatex">\\[\n\\sigma_i\n\\]</div>'
    made = hooks.on_page_content(page)
    assert made.count("<math ") == 2
    assert "arithmatex" not in made
    assert re.search(r"<mi>a</mi>.*<mo>&#x0003C;</mo><mi>b</mi>", made)
    assert re.search(r'display="block".*<msub><mi>&#x003C3;</mi><mi>i</mi></msub>', made)


def test_every_formula_of_the_pages_can_be_written_so(hooks: ModuleType):
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / "mathematics.md").read_text(), flags=re.S)
    formulas = re.findall(r"\$\$(.*?)\$\$", text, re.S) + re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", text)
    assert len(formulas) > 30
    for formula in formulas:
        made = hooks.on_page_content(f'<span class="arithmatex">\\({formula}\\)</span>')
        assert not re.search(r"\\[a-zA-Z]", made), formula  # no command is left as text


@pytest.mark.parametrize(
    "asks",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        "<script src=//cdn.example/x.js></script>",
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css">',
        '<img alt="" src="http://example.com/x.png">',
    ],
)
def test_a_page_that_asks_another_server_is_refused(hooks: ModuleType, asks: str):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    with pytest.raises(PluginError, match=r"index\.md loads from another server"):
        hooks.on_post_page(f"<head>{asks}</head>", page=page)


def test_other_pages_and_links_are_let_through(hooks: ModuleType):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    html = '<script src="assets/x.js"></script><a href="https://arxiv.org">paper</a><img src="results/demo.png">'
    assert hooks.on_post_page(html, page=page) == html


def test_examples_become_pages(hooks: ModuleType):
    code = "# %% [markdown]\n# # Title\n#\n# Text of\n# two lines.\n\n# %%\nx = 1  # one\n"
    code += "\n# %% [markdown]\n# - a\n#   b\n"
    assert hooks.notebook(code) == "# Title\n\nText of\ntwo lines.\n\n```python\nx = 1  # one\n```\n\n- a\n  b\n"


def test_links_of_the_repository_fit_the_site(hooks: ModuleType):
    text = "[a](../README.md#x) ![b](../results/b.svg) [c](docs/c.md) [d](d.md)"
    assert hooks.on_page_markdown(text) == "[a](index.md#x) ![b](results/b.svg) [c](c.md) [d](d.md)"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_repository_lead_somewhere(name: str):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link
