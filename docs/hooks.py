"""Hooks of the site: examples as pages, links that also work in the repository, formulas as MathML."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)
_REMOTE_SOURCE = re.compile(
    r"<(?:script|img|iframe|source|video|audio)[^>]*\ssrc=[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE
)
_REMOTE_LINK = re.compile(r"<link\s(?![^>]*rel=[\"']?canonical)[^>]*href=[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add files from outside docs/: the examples, the pictures in results/, and two pages of the repository."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=notebook(path.read_text())))
    for path in sorted((ROOT / "results").glob("*.??g")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        files.append(File.generated(config, name.lower(), content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Rewrite links of the repository for the site."""
    for there, here in (("](../README.md", "](index.md"), ("](../results/", "](results/"), ("](docs/", "](")):
        markdown = markdown.replace(there, here)
    return markdown


def on_page_content(content: str, **_: object) -> str:
    """Convert formulas to MathML, which browsers render without scripts."""
    return _FORMULA.sub(_mathml, content)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Raise an error for a page that would load anything from another server."""
    if found := _REMOTE_SOURCE.search(output) or _REMOTE_LINK.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another server: {found[0]}")
    return output


def notebook(code: str) -> str:
    """Convert a percent-format script to Markdown: comments of `# %% [markdown]` cells are text, the rest is code."""
    parts: list[str] = []
    for cell in re.split(r"^# %%", code, flags=re.MULTILINE):
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines()).strip())
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]).strip(), display=display)
