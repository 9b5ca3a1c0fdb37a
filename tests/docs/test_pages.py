"""Every block of code in the README and in docs/ runs, prints what it says it prints, and names what there is."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from tests.docs.pages import PAGES, ROOT, blocks, run_page, said

from noiseprop.cli import COMMANDS

NOT_RUN = {"README.md": 1, "CONTRIBUTING.md": 1, "commands.md": 1, "quickstart.md": 1, "scale.md": 3}
"""Blocks that are marked `<!-- not run: why -->`, by page: raise a number only for what cannot run here."""


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if any(block.runs for block in blocks(path))])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what skorch imports
def test_the_code_of_a_page_runs(name: str, ran: Callable[[str], dict[str, Any]]):
    ran(name)
    plt.close("all")


@pytest.mark.parametrize("name", PAGES)
def test_only_the_counted_blocks_do_not_run(name: str):
    unrun = [block for block in blocks(PAGES[name]) if block.mark == "not run"]
    assert len(unrun) == NOT_RUN.get(name, 0), "a block is marked as not run, or no longer: see NOT_RUN"
    assert all(len(block.why.split()) > 3 for block in unrun)  # each says why


@pytest.mark.parametrize("name", PAGES)
def test_every_fence_has_a_language_that_is_run_or_no_code(name: str):
    text = PAGES[name].read_text()
    assert {block.kind for block in blocks(PAGES[name])} <= {"python", "console", "text", "json"}
    assert len(re.findall(r"^ *(```|~~~)", text, re.MULTILINE)) == 2 * len(blocks(PAGES[name]))  # none is overlooked


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    def ask(command: str) -> str:
        arguments = [sys.executable, "-m", "noiseprop", command, "--help"]
        return subprocess.run(arguments, capture_output=True, text=True).stdout

    return {command: ask(command) for command in COMMANDS}


@pytest.mark.parametrize("name", PAGES)
def test_commands_that_are_not_run_exist_with_their_options(name: str, helps: dict[str, str]):
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(PAGES[name]):
        for command, _ in block.commands if block.kind == "console" else ():
            words = shlex.split(command)
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile
            elif words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file()
            elif "noiseprop" in words:
                _, *rest = words[words.index("noiseprop") :]
                assert rest[0] in COMMANDS or rest[0].startswith("-"), command
                for option in (word for word in rest[1:] if word.startswith("--")):
                    assert re.search(rf"{re.escape(option)}\b", helps[rest[0]]), f"{command}: no option {option}"


def test_what_is_said_to_be_printed_is_found():
    code = "print(1)  # one\nprint(2)\n# two\n# and more\n\nfor x in ():\n    print(x)\n# all\n"
    code += "x = 1  # prints nothing\nprint(3)\n\n# apart\n"
    assert said(code) == {1: "one", 2: "two\nand more", 7: "all"}


@pytest.mark.parametrize(
    "block",
    [
        "```python\nassert 1 == 2\n```",
        "```python\nprint(1)\n# 2\n```",
        "```python\nfor i in range(2):\n    print(i)\n# 0\n```",
        "```console\n$ false\n```",
        "```console\n$ echo 12\n2\n```",
        "```console\n$ noiseprop fly\n```",
    ],
)
def test_a_wrong_block_is_found(block: str, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{block}\n")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path)


def test_blocks_of_a_page_share_names_and_a_folder(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom pathlib import Path\nx = 2\n```\n"
        "<!-- not run: it would fail at once -->\n```python\n1 / 0\n```\n"
        "```console\n$ echo 12 > file   # a comment\n$ cat file; echo 13\n12\n...\n```\n"
        "```python\nprint(x * Path('file').read_text().strip())   # 1212\n```\n"
    )
    assert run_page(page, tmp_path)["x"] == 2
