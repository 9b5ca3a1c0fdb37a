import pytest
import torch

from noiseprop.environment import Environment, choose_device, describe_environment, describe_machine
from noiseprop.errors import InputError


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two of them, as far as torch tells."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "meta", "gpu", "cpu:1", ""])
def test_a_device_that_is_not_there_is_told(name, two_gpus):
    with pytest.raises(
        InputError, match=f"^'{name}' is not a device that torch can use here; choose one of cpu, cuda:0 to cuda:1$"
    ):
        choose_device(name)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there_is_found(name, two_gpus):
    assert choose_device(name) == torch.device(name)


def test_without_a_gpu_there_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"^'cuda' is not a device that torch can use here; choose one of cpu$"):
        choose_device("cuda")


def test_the_environment_is_that_of_this_process():
    here = describe_environment(processes=3)
    assert isinstance(here, Environment)
    assert (here.torch, here.threads, here.processes) == (str(torch.__version__), torch.get_num_threads(), 3)
    assert type(here.torch) is str
    machine = describe_machine()
    assert (machine["torch"], machine["threads"]) == (here.torch, str(here.threads))
