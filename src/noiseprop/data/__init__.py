"""Data sets as uint8 tensors, their split into training, validation and test images, and batches."""

from noiseprop.data.augment import crop_and_flip
from noiseprop.data.batches import batches
from noiseprop.data.dataset import Dataset
from noiseprop.data.digest import digest
from noiseprop.data.load import NAMES, load
from noiseprop.data.split import SPLIT_SEED, Split, split

__all__ = ["NAMES", "SPLIT_SEED", "Dataset", "Split", "batches", "crop_and_flip", "digest", "load", "split"]
