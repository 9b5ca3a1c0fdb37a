import pytest
import torch

from noiseprop.data import Dataset, Split


def made_up(count: int, seed: int) -> Dataset:
    """Images of 1 x 6 x 6 whose brightest third tells the class, with noise on top."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 1, 6, 6), generator=generator)
    for row in range(count):
        top = 2 * int(labels[row])
        images[row, :, top : top + 2] += 100
    return Dataset("mnist", images.to(torch.uint8), labels, ("top", "middle", "bottom"))


@pytest.fixture
def thirds() -> Split:
    """A small task that an MLP learns in a few epochs; 150 training images are 5 batches of 32, the last one short."""
    return Split(made_up(150, 1), made_up(40, 2), made_up(40, 3), seed=7, ratio=(5, 1, 1))
