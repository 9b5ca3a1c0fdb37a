"""Labelled images in memory: uint8 pixels and int64 labels."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noiseprop.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory (or memory-mapped).

    Attributes:
        name: one of `noiseprop.data.NAMES`, or the name of user data.
        images: uint8, (N, C, H, W), 0 to 255.
        labels: int64, (N,), indices into `classes`.
        classes: names of the classes.
        source: one sentence on the files that were read and their content.
        boxes: int64, (N, 4), or None: the object's box in pixels, columns x0, y0, x1, y1 with x1 and y1 inside the
            box; -1 in all four if the archive has no box for an image.
        split_seed: split seed in whose order the images already are (Tiny-ImageNet's memory-mapped cache), or None;
            `split` then takes slices of the map and copies nothing.
        path: absolute path of user data; empty for the named data sets.
        parts: numbers of training, validation and test images of user data that come split, in this order; 0
            validation images are later taken from the training images.
        is_official: whether the files match the official checksums; None for user data.

    Raises:
        InputError: dtypes or lengths do not fit together, or a label is not an index into `classes`.

    Examples:
        >>> digits = Dataset("two", torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), ("zero", "one"))
        >>> len(digits), digits[1:].labels.tolist()
        (2, [1])
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str = ""
    boxes: Tensor | None = None
    split_seed: int | None = None
    path: str = ""
    parts: tuple[int, int, int] | None = None
    is_official: bool | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise InputError(
                f"{self.name}: images must be uint8 of shape (N, C, H, W), not {found}; convert them first"
            )
        count = len(self.images)
        if self.labels.shape != (count,) or self.labels.dtype != torch.int64:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise InputError(f"{self.name}: labels must be int64 of shape ({count},), not {found}; convert them first")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            low, high = int(self.labels.min()), int(self.labels.max())
            raise InputError(f"{self.name}: labels run from {low} to {high}, expected 0 to {len(self.classes) - 1}")
        if self.boxes is not None and self.boxes.shape != (count, 4):
            raise InputError(f"{self.name}: boxes must have shape ({count}, 4), not {tuple(self.boxes.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> "Dataset":
        """Return some of the images; a slice shares memory with this data set, an index tensor copies."""
        boxes = None if self.boxes is None else self.boxes[rows]
        return replace(
            self, images=self.images[rows], labels=self.labels[rows], boxes=boxes, split_seed=None, parts=None
        )
