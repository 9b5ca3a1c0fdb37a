"""The code in the README and the pages of docs/: found, and run from top to bottom of a page."""

import ast
import contextlib
import doctest
import importlib.util
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))}

_MARK = r"<!-- (?P<mark>not run|needs):? (?P<why>[^\n]*) -->\n"
_BLOCK = re.compile(rf"^(?:{_MARK})?^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the line of the page that it begins in, and what marks it."""

    kind: str
    code: str
    line: int
    mark: str | None
    why: str

    @property
    def runs(self) -> bool:
        if self.mark == "needs" and os.environ.get("CI") != "true":
            return importlib.util.find_spec(self.why) is not None
        return self.mark != "not run"

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Of a console block: each command, without its comment, and the lines below it."""
        found: list[tuple[str, str]] = []
        for part in re.split(r"^\$ ", self.code, flags=re.MULTILINE)[1:]:
            command, _, output = part.replace("\\\n", " ").partition("\n")
            found.append((re.sub(r"\s+# .*", "", command), output))
        return found


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(m["kind"], m["code"], text.count("\n", 0, m.start("code")), m["mark"], m["why"] or "")
        for m in _BLOCK.finditer(text)
    ]


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Run all blocks of a page in a folder; the names that its Python blocks have made."""
    names: dict[str, Any] = {"__name__": page.stem}
    torch.manual_seed(0)
    with contextlib.chdir(folder):
        for block in blocks(page):
            if block.runs and block.kind == "python":
                _run_python(block, page, names)
            elif block.runs and block.kind == "console":
                for command, expected in block.commands:
                    _run_command(command, expected)
    return names


def said(code: str) -> dict[int, str]:
    """By the line that a statement ends in: what a comment behind or below a print says that it prints."""
    lines, found = code.splitlines(), {}
    for node in ast.parse(code).body:
        if not any(isinstance(name, ast.Name) and name.id == "print" for name in ast.walk(node)):
            continue
        end = node.end_lineno or 0
        behind = re.search(r"\)\s+# (.*)$", lines[end - 1])
        below: list[str] = []
        for line in lines[end:]:
            if not line.startswith("# "):
                break
            below.append(line.removeprefix("# "))
        if expected := ([behind[1]] if behind else below):
            found[end] = "\n".join(expected)
    return found


def _run_python(block: Block, page: Path, names: dict[str, Any]) -> None:
    expected = said(block.code)
    for node in ast.parse(block.code).body:
        end = node.end_lineno
        ast.increment_lineno(node, block.line)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([node], []), str(page), "exec"), names)
        if end in expected:
            _check(expected[end], printed.getvalue(), f"{page.name}, line {block.line + end}")


def _run_command(command: str, expected: str) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "NO_COLOR": "1",
        "COLUMNS": "80",
    }
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    if expected.strip():
        _check(expected, done.stdout, f"$ {command}")


def _check(expected: str, printed: str, where: str) -> None:
    same = doctest.OutputChecker().check_output(expected.rstrip() + "\n", printed.rstrip() + "\n", _COMPARE)
    assert same, f"{where}: said to print\n{expected}\nand printed\n{printed}"
