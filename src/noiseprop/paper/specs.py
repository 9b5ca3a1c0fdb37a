"""Specification of the reproduced tables: rows, recipes, and two protocols, the paper's text and its released code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from noiseprop.errors import InputError
from noiseprop.evaluation.settings import Settings, known_settings
from noiseprop.models import Activation
from noiseprop.models.registry import get_variant
from noiseprop.training import TABLE_1, Precision, Recipe, fast

DEPARTURES = {
    "gradient-sign": "z = |sigma| eps forward, but the gradient of sigma is g eps, without sign(sigma)",
    "sigma-adam": "torch.optim.Adam updates sigma, as one weight among the others, instead of Eq. 7",
    "sigma-decay": "the L2 decay of 1e-4 on the weights acts on sigma, too",
    "sigma-start": "sigma starts from N(0, 1) on Linear layers and Xavier-normal on convolutions, instead of 1",
    "linear-start": "Linear layers with learned noise start Xavier-normal, their biases from N(0, 1)",
    "conv-mean": "convolutions with learned noise learn a mean mu per neuron, too, which starts Xavier-normal",
    "fixed-sigmoid": "the MLPN with Sigmoid has noise of fixed sigma 1: it is an MLP+",
    "silent-plus": "fixed noise acts in training only",
    "early-stopping": "at most 10 epochs, and training ends with the first whose accuracy on test images exceeds 0.97",
    "batch-lbfgs": "L-BFGS runs over 128 images at once, on their mean loss, with the early stops of torch.optim.LBFGS",
    "single-draw": "attacks on random networks see a single draw of the noise (no EOT)",
}
"""Departures of the released code from the paper that affect MNIST (notes.md, items 1 to 7)."""

_SHARED = ("gradient-sign", "sigma-start", "linear-start", "conv-mean", "silent-plus")
RESNET_DEPARTURES = {
    **{name: DEPARTURES[name] for name in _SHARED},
    "sigma-adam": "the optimizer of the weights updates sigma, as one weight among the others, instead of Eq. 7",
    "sigma-decay": "the L2 decay of the weights acts on sigma, too",
    "silent-learned": "learned noise acts in training only, and so does its mean mu",
    "after-addition": "noise follows the residual addition and the BatchNorm of the stem, not the last convolution",
    "plain-last-linear": "the last Linear of ResNet18 has no fixed noise",
    "batch-lbfgs": DEPARTURES["batch-lbfgs"],
    "normalised-attacks": "attacks on CIFAR-10 act on normalised images and clamp them to [0, 1] there",
    "single-draw": DEPARTURES["single-draw"],
}
"""Departures that affect the ResNets. Where its ResNet18 has LeakyReLU is unknown, so all activations are ReLU here."""
_RESNET18_ONLY = ("plain-last-linear", "normalised-attacks")

_STOP_ABOVE, _STOP_AFTER = 0.97, 10
RecipeName = Literal["table1", "fast"]


@dataclass(frozen=True)
class Protocol:
    """Training and evaluation by the paper's text, apart from `departures`, which are names of DEPARTURES."""

    name: str
    departures: frozenset[str] = frozenset()

    def __contains__(self, departure: str) -> bool:
        return departure in self.departures


PROTOCOLS = {
    "paper": Protocol("paper"),
    "released-code": Protocol("released-code", frozenset(DEPARTURES)),
}

RESNETS = {"table5": "cifar10", "table6": "tiny-imagenet"}
"""Tables of ResNets, and their data sets."""


def list_departures(table: str) -> Mapping[str, str]:
    """Return the departures of the released code that affect a table, with a description of each."""
    if table not in RESNETS:
        return DEPARTURES
    return {name: text for name, text in RESNET_DEPARTURES.items() if table == "table5" or name not in _RESNET18_ONLY}


def choose_protocol(name: str, switch: Iterable[str] = (), table: str = "table3") -> Protocol:
    """Return a protocol with single departures switched: added to `paper`, taken from `released-code`.

    Raises:
        InputError: the protocol is unknown, or the table has no such departure.

    Examples:
        >>> choose_protocol("paper", ["gradient-sign"]).name
        'paper-with-gradient-sign'
        >>> "early-stopping" in choose_protocol("released-code", ["early-stopping"])
        False
    """
    if name not in PROTOCOLS:
        raise InputError(f"{name!r} is not a protocol; choose one of {', '.join(PROTOCOLS)}")
    names, known = set(switch), list_departures(table)
    if unknown := sorted(names - set(known)):
        raise InputError(f"{unknown[0]!r} is not a departure of the released code; choose from {', '.join(known)}")
    base = frozenset(known if PROTOCOLS[name].departures else ())
    if not names:
        return Protocol(name, base)
    return Protocol("-".join([name, "without" if base else "with", *sorted(names)]), base ^ names)


@dataclass(frozen=True)
class Row:
    """Row of a table: a network by its name in the registry, and its activation."""

    model: str
    activation: Activation = "relu"

    @property
    def name(self) -> str:
        """Return the name of the row: `MLPN, ReLU` or `CNN-AN`."""
        if not self.model.startswith("MLP"):
            return self.model
        return f"{self.model}, {'ReLU' if self.activation == 'relu' else 'Sigmoid'}"

    @property
    def slug(self) -> str:
        """Return the name of the row in paths: `mlpn-relu` or `cnn-an`; a plus becomes `plus`."""
        return self.name.lower().replace(", ", "-").replace("+", "plus")

    @property
    def has_learned_noise(self) -> bool:
        """Return whether the paper learns its noise."""
        return get_variant(self.model).has_learned_noise

    @property
    def has_fixed_noise(self) -> bool:
        """Return whether it has noise of fixed sigma."""
        return get_variant(self.model).noise is not None and not self.has_learned_noise

    @property
    def has_noise_everywhere(self) -> bool:
        """Return whether its convolutions have noise, too."""
        noise = get_variant(self.model).noise
        return noise is not None and noise.everywhere


TABLES = {
    "table3": tuple(Row(model, activation) for model in ("MLP", "MLP+", "MLPN") for activation in ("relu", "sigmoid")),
    **{
        table: tuple(Row(base + noise) for noise in ("", "-MLP+", "-A+", "-MLPN", "-AN"))
        for table, base in (("table4", "CNN"), ("table5", "ResNet18"), ("table6", "ResNet34"))
    },
}
FIGURE_3 = tuple(row for row in TABLES["table3"] if row.activation == "relu")
TITLES = {
    "table3": "Table 3: MLPs on MNIST",
    "table4": "Table 4: CNNs on MNIST",
    "table5": "Table 5: ResNet18 on CIFAR-10",
    "table6": "Table 6: ResNet34 on Tiny-ImageNet",
}

FAST_LIMITS = {"table5": {"vote_draws": 8}, "table6": {"vote_draws": 8, "trust_images": 64}}
"""Limits of the evaluation of ResNets of the `fast` recipe, for CPUs."""

EVERYWHERE_LIMITS = {
    "table5": {"eot_images": 250, "vote_images": 250, "trust_images": 64},
    "table6": {"eot_images": 64, "vote_images": 64, "trust_images": 16},
}
"""Numbers of images for attacks over many draws, votes and checks of such ResNets with noise everywhere."""

CNN_VOTE_IMAGES = 2000
"""Images on which CNNs with noise everywhere vote; each takes 32 whole passes."""


def choose_recipe(
    protocol: Protocol,
    dataset: str,
    *,
    epochs: int | None = None,
    precision: Precision = "fp32",
    name: RecipeName = "table1",
) -> Recipe:
    """Return the recipe of Table 1, cut to 10 epochs under "early-stopping", or `fast`; None keeps their epochs."""
    recipe = TABLE_1[dataset] if name == "table1" else fast(dataset)
    epochs = recipe.epochs if epochs is None else epochs
    if "early-stopping" in protocol:
        epochs = min(epochs, _STOP_AFTER)
    return replace(recipe, epochs=epochs, precision=precision)


def stops_early(protocol: Protocol, test_accuracy: float) -> bool:
    """Return whether training ends after an epoch with this accuracy on the test images."""
    return "early-stopping" in protocol and test_accuracy > _STOP_ABOVE


def choose_settings(
    protocol: Protocol,
    dataset: str,
    table: str = "table3",
    row: Row | None = None,
    recipe: RecipeName = "table1",
) -> Settings:
    """Return the settings of Table 2; under "single-draw" white-box attacks average over one draw alone.

    K draws of a network with noise everywhere cost K whole passes, so such CNNs vote on fewer images. ResNets of the
    `fast` recipe, which is for CPUs, vote by fewer draws, and those with noise everywhere vote, are checked and are
    attacked over 20 draws on fewer images. Everything that is scored by one draw keeps all images. A pass of ResNet34
    on Tiny-ImageNet costs two of ResNet18 on CIFAR-10, so its limits are lower.
    """
    settings = known_settings(dataset)
    everywhere = row is not None and row.has_noise_everywhere
    if table == "table4":
        settings = replace(settings, batch_size=256)  # feature maps of 2,000 images would leave the cache
        if everywhere:
            settings = replace(settings, vote_images=CNN_VOTE_IMAGES)
    if table in RESNETS and recipe == "fast":
        limits = FAST_LIMITS[table] | (EVERYWHERE_LIMITS[table] if everywhere else {})
        settings = replace(settings, **{name: min(count, getattr(settings, name)) for name, count in limits.items()})
    return replace(settings, attack_draws=(1,)) if "single-draw" in protocol else settings
