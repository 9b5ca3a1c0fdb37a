"""Records of config.json: everything that decides the bits of a run, and the environment in which it started."""

from typing import Annotated, Any, Literal

import msgspec

from noiseprop.data import Split, digest
from noiseprop.environment import Environment
from noiseprop.models.config import ModelConfig
from noiseprop.training.recipes import Recipe

Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**10)]
RUN_VERSION = 2
_Name = Annotated[str, msgspec.Meta(max_length=1000)]


class SplitSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Number of images in each part of a split."""

    train: _Count
    validation: _Count
    test: _Count


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Data of a run.

    Attributes:
        name: name of the data set.
        split_seed: seed of the split.
        ratio: relative sizes of training, validation and test images.
        images: their numbers.
        digest: SHA-256 of all images and labels, see `noiseprop.data.digest`.
        path: path of user data at the time of the training; empty for the named data sets.
    """

    name: _Name
    split_seed: Seed
    ratio: tuple[_Count, _Count, _Count]
    images: SplitSizes
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    path: Annotated[str, msgspec.Meta(max_length=10_000)] = ""


class ObjectiveConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Objective of the noise: name of its class, and its numbers before the first epoch."""

    name: _Name
    numbers: dict[str, int | float] = {}


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides the bits of a run, except for the environment.

    Attributes:
        model: how the model is made.
        data: its data.
        recipe: how it is trained.
        seed: seed of the order of the images and of their augmentation.
        objective: objective of the noise; None for the plain loss.
        extra: settings that the caller of `train` adds, JSON-able.
    """

    model: ModelConfig
    data: DataConfig
    recipe: Recipe
    seed: Seed
    objective: ObjectiveConfig | None = None
    extra: dict[str, Any] = {}


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of config.json.

    Attributes:
        settings: settings of the run.
        made_with: environment in which the run started.
    """

    format: Literal["noiseprop run"]
    version: Literal[2]  # RUN_VERSION
    settings: RunSettings
    made_with: Environment


def describe_data(split: Split) -> DataConfig:
    """Return the record of a split; all of its images are read for the digest."""
    first, second, third = split.ratio
    return DataConfig(
        name=split.train.name,
        split_seed=split.seed,
        ratio=(first, second, third),
        images=SplitSizes(len(split.train), len(split.validation), len(split.test)),
        digest=digest(split),
        path=split.train.path,
    )
