"""Settings of an evaluation: conditions, the attacks of Table 2 per data set, noise draws, seed."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import msgspec
import numpy as np

from noiseprop.corruptions import KINDS as CORRUPTIONS
from noiseprop.corruptions import PARAMS
from noiseprop.errors import InputError

ATTACKS = ("fgsm", "lbfgs", "pgd")
TRANSFERRED_ATTACKS = {"fgsm-transfer": "fgsm", "lbfgs-transfer": "lbfgs"}
TRANSFERS = tuple(TRANSFERRED_ATTACKS)
CONDITIONS = ("clean", *ATTACKS, *TRANSFERS, *CORRUPTIONS)

NO_LIMIT = 10_000_000

Count = Annotated[int, msgspec.Meta(ge=1, lt=10**9)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


@dataclass(frozen=True)
class Settings:
    """Everything that determines the figures of an evaluation, apart from the model and the images.

    Attributes:
        fgsm_eps: step of FGSM, in input units ([0, 1]), like `pgd_eps`, `pgd_step` and `lbfgs_step`.
        pgd_eps: radius of PGD's ball.
        pgd_step: step size of PGD.
        pgd_steps: number of PGD steps.
        lbfgs_step: step length of L-BFGS.
        lbfgs_steps: number of L-BFGS iterations.
        corruption_params: parameter set of the corruptions, one of `noiseprop.corruptions.PARAMS`.
        conditions: conditions to measure, from CONDITIONS.
        attack_draws: numbers of noise draws over which white-box attacks average each gradient (EOT).
        vote_draws: draws of a vote.
        attack_images: number of images under attack, the first of the test split.
        eot_images: at most this many of them are attacked with gradients over several draws. Where the draws of a
            network share no computation, they cost as much as that many networks.
        vote_images: at most this many images, the first that are scored, are voted on.
        trust_images: number of images for the sanity checks.
        batch_size: images times draws in one pass of a model; it changes figures by rounding only.
        seed: seed of the noise during the evaluation.
    """

    fgsm_eps: PositiveNumber = 0.1
    pgd_eps: PositiveNumber = 25 / 255
    pgd_step: PositiveNumber = 5 / 255
    pgd_steps: Count = 10
    lbfgs_step: PositiveNumber = 0.5
    lbfgs_steps: Count = 10
    corruption_params: str = "cifar10"
    conditions: tuple[str, ...] = CONDITIONS
    attack_draws: tuple[Count, ...] = (1, 20)
    vote_draws: Count = 32
    attack_images: Count = 1000
    eot_images: Count = NO_LIMIT
    vote_images: Count = NO_LIMIT
    trust_images: Count = 256
    batch_size: Count = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Check every field against its type and bounds; NumPy numbers and lists become plain ones and tuples."""
        kinds = get_type_hints(Settings, include_extras=True)
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            try:
                plain = msgspec.convert(_to_plain(value), kinds[name])
            except msgspec.ValidationError as error:
                raise InputError(f"settings: {name} is {value!r}: {error}.") from error
            object.__setattr__(self, name, plain)
        unknown = set(self.conditions) - set(CONDITIONS)
        if unknown or not self.conditions or len(set(self.conditions)) != len(self.conditions):
            raise InputError(f"settings: conditions are {self.conditions}, expected different ones of {CONDITIONS}.")
        if not self.attack_draws or len(set(self.attack_draws)) != len(self.attack_draws):
            raise InputError(f"settings: attack_draws are {self.attack_draws}, expected different numbers from 1 up.")
        if self.corruption_params not in PARAMS:
            raise InputError(f"settings: corruption_params is {self.corruption_params!r}, expected one of {PARAMS}.")


def _to_plain(value: Any) -> Any:
    """Return a NumPy number, also inside a list or tuple, as a Python number."""
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value.item() if isinstance(value, np.generic) else value


# Table 2, and the corruption parameters that the paper's protocol applies to each data set
SETTINGS = {
    "mnist": Settings(batch_size=512),  # larger pieces fall out of the cache
    "cifar10": Settings(
        pgd_eps=8 / 255, pgd_step=2 / 255, pgd_steps=5, lbfgs_step=0.05, lbfgs_steps=20, batch_size=256
    ),
    "tiny-imagenet": Settings(
        fgsm_eps=2 / 255,
        pgd_eps=5 / 255,
        pgd_step=2 / 255,
        pgd_steps=3,
        lbfgs_step=0.05,
        corruption_params="tiny-imagenet",
        batch_size=64,
    ),
}
SETTINGS["mnist-5k"] = SETTINGS["mnist"]


def known_settings(name: str) -> Settings:
    """Return the settings of a data set by its name.

    Raises:
        InputError: the data set has no settings.
    """
    if name not in SETTINGS:
        raise InputError(f"evaluate: no settings are known for {name!r} ({', '.join(SETTINGS)} have); pass settings=.")
    return SETTINGS[name]


def choose_settings(name: str, image: tuple[int, ...], *, own: bool) -> Settings:
    """Return the settings of a data set; a user-defined one gets the row of Table 2 with the most similar images.

    Args:
        name: name of the data set.
        image: shape (C, H, W) of its images: grey ones get MNIST's row, others up to 32 pixels a side CIFAR-10's,
            larger ones Tiny-ImageNet's.
        own: whether the data set is user-defined.

    Raises:
        InputError: the data set is not user-defined and has no settings.
    """
    if not own:
        return known_settings(name)
    return SETTINGS["mnist" if image[0] == 1 else "cifar10" if max(image[1:]) <= 32 else "tiny-imagenet"]
