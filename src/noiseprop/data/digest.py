"""Digest of a split, which identifies its images and labels."""

import hashlib

from noiseprop.data.split import Split

_CHUNK = 4096  # images read at once from a memory-mapped data set


def digest(split: Split) -> str:
    """Return the SHA-256, in hex, of all images and labels of a split, part by part in their order.

    Args:
        split: parts of any data set; those mapped from a file are read once.

    Returns:
        Hexadecimal digits (64), the same on every machine.

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
