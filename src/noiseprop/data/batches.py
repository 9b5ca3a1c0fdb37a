"""Batches straight from memory, by whole-batch torch operations without loader processes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noiseprop.data.dataset import Dataset
from noiseprop.errors import InputError

Augment = Callable[..., Tensor]


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    generator: torch.Generator | None,
    augment: Augment | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over a data set once, in batches of floats.

    Args:
        dataset: images and labels; batches stay on their device.
        batch_size: images per batch; the last batch holds the rest.
        generator: shuffles the images (the order is drawn when `batches` is called) and seeds `augment`; None keeps
            the order.
        augment: called with each batch as `augment(x, generator=generator)`, for example `crop_and_flip`.
        drop_last: drop a last batch that is not full.

    Returns:
        An iterator over (x, y): x float32, (B, C, H, W), in [0, 1]; y int64, (B,).

    Raises:
        InputError: the batch size is below 1, or `augment` is given without a generator.

    Examples:
        >>> white = torch.full((3, 1, 1, 1), 255, dtype=torch.uint8)
        >>> three = Dataset("three", white, torch.tensor([0, 1, 2]), ("a", "b", "c"))
        >>> [(x.flatten().tolist(), y.tolist()) for x, y in batches(three, 2, generator=None)]
        [([1.0, 1.0], [0, 1]), ([1.0], [2])]
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}, expected at least 1")
    if augment is not None and generator is None:
        raise InputError("augment draws random numbers, but generator is None; pass generator=torch.Generator()")
    count = len(dataset) // batch_size * batch_size if drop_last else len(dataset)
    order = None
    if generator is not None:
        order = torch.randperm(len(dataset), generator=generator, device=generator.device).to(dataset.images.device)
    return _iterate_batches(dataset, batch_size, count, order, augment, generator)


def _iterate_batches(
    dataset: Dataset,
    batch_size: int,
    count: int,
    order: Tensor | None,
    augment: Augment | None,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = dataset.images, dataset.labels
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        if order is None:
            pixels, y = images[rows], labels[rows].clone()
        else:
            pixels, y = images.index_select(0, order[rows]), labels.index_select(0, order[rows])
        x = pixels.to(torch.float32).div_(255)  # (B, C, H, W)
        yield (x if augment is None else augment(x, generator=generator)), y
