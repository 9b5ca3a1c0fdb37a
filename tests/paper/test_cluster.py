"""What can be wrong with a cluster before it does anything; tests/faults/test_node.py has a real one."""

import sys

import pytest

from noiseprop.cli import main
from noiseprop.errors import RunError
from noiseprop.paper import ray_cluster as cluster


def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    command = ["reproduce", "table3", "--data", "mnist-5k", "--seeds", "1", "--runs", str(tmp_path / "runs"), "--ray"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "noiseprop: --ray needs Ray, which is missing: pip install noiseprop[ray]\n"


def test_a_node_without_the_folder_is_told(tmp_path):
    (tmp_path / ".cluster").write_text("here")
    cluster._check_shared(tmp_path, "here")
    for root in (tmp_path, tmp_path / "elsewhere"):
        with pytest.raises(RunError, match=r"does not see this .*; give --runs a folder that all nodes share"):
            cluster._check_shared(root, "there")
