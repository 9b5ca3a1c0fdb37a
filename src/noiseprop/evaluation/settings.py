"""What decides an evaluation's figures: conditions, Table 2's attack settings per data set, draws, seed."""

from dataclasses import dataclass, fields

from noiseprop.corruptions import KINDS as CORRUPTIONS
from noiseprop.corruptions import PARAMS
from noiseprop.errors import InputError

ATTACKS = ("fgsm", "lbfgs", "pgd")
TRANSFERS = ("fgsm-transfer", "lbfgs-transfer")
CONDITIONS = ("clean", *ATTACKS, *TRANSFERS, *CORRUPTIONS)


NO_LIMIT = 10_000_000


@dataclass(frozen=True)
class Settings:
    """Everything that decides an evaluation's figures, apart from the model and the images.

    Attributes:
        fgsm_eps: step of FGSM, in input units ([0, 1]), as are all of `pgd_eps`, `pgd_step` and `lbfgs_step`.
        pgd_eps: radius of PGD's ball.
        pgd_step: size of PGD's steps.
        pgd_steps: their number.
        lbfgs_step: step length of L-BFGS.
        lbfgs_steps: its iterations.
        corruption_params: parameter set of the corruptions, one of `noiseprop.corruptions.PARAMS`.
        conditions: what to measure, of CONDITIONS.
        attack_draws: numbers of noise draws over which white-box attacks average each gradient (EOT).
        vote_draws: draws of a vote.
        attack_images: attacks are made on so many images, the first of the test split.
        eot_images: of these, so many at most for attacks that average over several draws; where the draws of a network
            share nothing, they cost as much as so many networks.
        vote_images: votes are taken on so many images at most, the first of those that are scored.
        trust_images: the checks of `trust` look at so many.
        batch_size: images times draws that go through a model at once; figures depend on it by rounding alone.
        seed: of the noise during the evaluation.
    """

    fgsm_eps: float = 0.1
    pgd_eps: float = 25 / 255
    pgd_step: float = 5 / 255
    pgd_steps: int = 10
    lbfgs_step: float = 0.5
    lbfgs_steps: int = 10
    corruption_params: str = "cifar10"
    conditions: tuple[str, ...] = CONDITIONS
    attack_draws: tuple[int, ...] = (1, 20)
    vote_draws: int = 32
    attack_images: int = 1000
    eot_images: int = NO_LIMIT
    vote_images: int = NO_LIMIT
    trust_images: int = 256
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings under which no honest figure can come out."""
        for field in fields(self):
            value, whole = getattr(self, field.name), isinstance(field.default, int)
            if not (whole or isinstance(field.default, float)):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise InputError(f"settings: {field.name} is {value!r}, expected {kind}.")
            if field.name != "seed" and not 0 < value < 1e9:
                raise InputError(f"settings: {field.name} is {value}, expected a number above 0.")
        unknown = set(self.conditions) - set(CONDITIONS)
        if unknown or not self.conditions or len(set(self.conditions)) != len(self.conditions):
            raise InputError(f"settings: conditions are {self.conditions}, expected different ones of {CONDITIONS}.")
        if not self.attack_draws or min(self.attack_draws) < 1 or len(set(self.attack_draws)) != len(self.attack_draws):
            raise InputError(f"settings: attack_draws are {self.attack_draws}, expected different numbers from 1 up.")
        if self.corruption_params not in PARAMS:
            raise InputError(f"settings: corruption_params is {self.corruption_params!r}, expected one of {PARAMS}.")
        if not 0 <= self.seed < 2**62:
            raise InputError(f"settings: seed is {self.seed}, expected 0 <= seed < 2**62.")


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
    """The settings of a data set by its name.

    Raises:
        InputError: none are known.
    """
    if name not in SETTINGS:
        raise InputError(f"evaluate: no settings are known for {name!r} ({', '.join(SETTINGS)} have); pass settings=.")
    return SETTINGS[name]


def settings_of(name: str, image: tuple[int, ...], *, own: bool) -> Settings:
    """The settings of a data set; images of the user's own get the row of Table 2 whose images are most like them.

    Args:
        name: of the data set.
        image: the images' shape (C, H, W): grey ones get MNIST's row, others up to 32 pixels a side CIFAR-10's, larger
            ones Tiny-ImageNet's.
        own: whether the data are the user's own.

    Raises:
        InputError: the data are not the user's own, and none are known for their name.
    """
    if not own:
        return known_settings(name)
    return SETTINGS["mnist" if image[0] == 1 else "cifar10" if max(image[1:]) <= 32 else "tiny-imagenet"]
