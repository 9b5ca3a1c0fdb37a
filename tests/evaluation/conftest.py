import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: the models here are tiny, so threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
