"""Small deterministic networks, images and the oracles foolbox and torchattacks (which needs no torchvision)."""

import warnings

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from noiseprop.noise.attach.add_noise import add_noise

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox 3.3.4 imports scipy.ndimage.filters
    import foolbox  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are too small to share: on a busy machine threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):  # SciPy's L-BFGS-B solves 20 x 20 systems in OpenBLAS
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def conv():
    """Return a convolutional network for images (B, 2, 8, 8) with 5 classes, with random weights and plain ReLU."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    ).eval()


@pytest.fixture
def batch():
    """16 images (16, 2, 8, 8), some of their pixels exactly 0 or 1, and labels."""
    generator = torch.Generator().manual_seed(2)
    x = (1.4 * torch.rand(16, 2, 8, 8, generator=generator) - 0.2).clamp(0, 1)
    return x, torch.randint(5, (16,), generator=generator)


@pytest.fixture
def linear():
    """Two classes, logits Wx + b: the loss rises with d = (w_other - w_y) x alone, so its maximum is known."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 2))


@pytest.fixture
def linear_optimum(linear):
    """Return the exact maximiser of the cross-entropy in the L-infinity ball of a batch (B, 30), cut to [0, 1]."""

    def optimum(x, y, eps):
        rows = linear[1].weight.detach().to(x.dtype)
        return (x + eps * torch.sign(rows[1 - y] - rows[y])).clamp(0, 1)

    return optimum


@pytest.fixture
def noisy_linear(linear):
    """`linear` with noise of sigma 2 on both logits: most passes miss by luck, and the exact optimum is the same."""
    return add_noise(linear, ["1"], init=2.0, example=torch.zeros(1, 30), key=11).eval()


@pytest.fixture
def noisy_conv(conv, batch):
    """`conv` with noise of sigma 0.5 on its first Linear output and on its logits."""
    return add_noise(conv, ["4", "6"], init=0.5, example=batch[0], key=12).eval()


@pytest.fixture
def linear_batch():
    generator = torch.Generator().manual_seed(4)
    return torch.rand(12, 30, generator=generator), torch.randint(2, (12,), generator=generator)
