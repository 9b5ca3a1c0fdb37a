"""What tells one data set's images from another's of the same name."""

import hashlib

from noiseprop.data.split import Split

_CHUNK = 4096  # images that are read at once from a memory-mapped data set


def digest(split: Split) -> str:
    """SHA-256, in hex, of every image and label of a split, part by part in their order.

    Args:
        split: of any data set; one that is mapped from a file is read through once.

    Returns:
        64 hexadecimal digits, the same on every machine.

    Examples:
        >>> import torch
        >>> from noiseprop.data import Dataset, split
        >>> dark = Dataset("mnist", torch.zeros(70, 1, 2, 2, dtype=torch.uint8), torch.arange(70) % 2, ("even", "odd"))
        >>> digest(split(dark))[:12]
        '7aaa52bf2a31'
    """
    whole = hashlib.sha256()
    for part in (split.train, split.validation, split.test):
        whole.update(f"{tuple(part.images.shape)}".encode())
        for start in range(0, len(part), _CHUNK):
            whole.update(part.images[start : start + _CHUNK].cpu().contiguous().numpy().data)
        whole.update(part.labels.cpu().numpy().astype("<i8").tobytes())
    return whole.hexdigest()
