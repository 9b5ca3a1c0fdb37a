import ast
import subprocess
import sys
from pathlib import Path

import pytest

import noiseprop


def test_what_the_type_checker_sees_is_what_is_there():
    tree = ast.parse(Path(noiseprop.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {name: f"noiseprop.{home}" for name, home in noiseprop._HOMES.items()}
    assert len(imported) == 16
    for name, home in imported.items():
        assert getattr(noiseprop, name) is getattr(sys.modules[home], name)
        assert name in dir(noiseprop)


def test_import_star_gives_the_public_names_and_no_others():
    script = (
        "names = set(globals())\n"
        "from noiseprop import *\n"
        "print(*sorted(set(globals()) - names - {'names'}))\n"
        "net = add_noise(__import__('torch').nn.Linear(2, 3), 'linear', granularity='layer', init=0.5)\n"
        "print(*[sigma.item() for sigma in sigmas(net)], is_noisy(net), isinstance(net.noise, NeuronNoise))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    names, values = done.stdout.splitlines()
    assert names.split() == sorted(noiseprop._HOMES), done.stderr
    assert len(names.split()) == 16
    assert values == "0.5 True True"


def test_an_unknown_name_is_told_as_python_tells_it():
    with pytest.raises(AttributeError, match="module 'noiseprop' has no attribute 'add_nose'"):
        _ = noiseprop.add_nose
    with pytest.raises(ImportError, match="cannot import name 'add_nose'"):
        exec("from noiseprop import add_nose")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["train", "--epochs", "many", "--out", "x"], 2),
        (["fly"], 2),
    ],
)
def test_help_and_argument_errors_do_not_wait_for_torch(arguments, code):
    script = (
        "import sys; from noiseprop.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "slow = {'torch', 'numpy', 'numba', 'scipy', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
