"""Plain DistributedDataParallel around noisy models in a user's own loop; its processes run ddp_worlds.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WHOLE = ["vit", "frozen_norm", "swapped_stem", "cells", "key_per_rank"]
SAME = ["same", "same_cells", "same_vit"]
LOOPBACK = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, Path(__file__).with_name("ddp_worlds.py"), folder, *WHOLE, *SAME]
    done = subprocess.run(command, env=os.environ | LOOPBACK, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def load_ranks(folder: Path, size: int, network: str) -> list[dict[str, Tensor]]:
    return [load_file(folder / str(size) / f"{network}-{rank}.safetensors") for rank in range(size)]


@pytest.mark.parametrize("network", WHOLE)
def test_two_processes_equal_one_with_the_whole_batch(worlds, network):
    (alone,), (first, second) = load_ranks(worlds, 1, network), load_ranks(worlds, 2, network)
    compared = 0
    for name, whole in alone.items():
        if name.startswith(("gradient-", "state.")):
            torch.testing.assert_close(first[name], whole, rtol=1e-4, atol=1e-5)
            assert torch.equal(first[name], second[name])
            compared += name.startswith("gradient-")
        elif name.startswith(("logits-", "frozen", "off", "reset", "draws")):
            torch.testing.assert_close(torch.cat([first[name], second[name]]), whole, rtol=1e-4, atol=1e-5)
    assert compared > 12
    torch.testing.assert_close(alone["draws"][:, 0], alone["reset"])
    assert (alone["draws"][:, 0] - alone["draws"][:, 1]).abs().mean() > 1e-2
    assert (alone["frozen"] - alone["off"]).abs().mean() > 1e-2


@pytest.mark.parametrize("network", WHOLE)
def test_processes_draw_independent_noise(worlds, network):
    """All images are equal, so equal outputs would show equal noise, whatever sampler deals them out."""
    first, second = load_ranks(worlds, 2, network)
    for name in ("equal-images", "dealt-0", "dealt-1"):
        outputs = torch.cat([first[name], second[name]])
        distances = torch.cdist(outputs, outputs).fill_diagonal_(1)
        assert distances.min() > 1e-3


@pytest.mark.parametrize("network", SAME)
def test_a_switch_gives_all_processes_the_same_noise(worlds, network):
    first, second = load_ranks(worlds, 2, network)
    for name in ("equal-images", "dealt-0", "dealt-1"):
        assert torch.equal(first[name], second[name])
        assert torch.cdist(first[name], first[name]).fill_diagonal_(1).min() > 1e-3
    assert not torch.equal(first["logits-0"], second["logits-0"])  # of other images
