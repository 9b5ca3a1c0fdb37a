"""The two protocols of the reproduction: the paper's text, and its released code as a set of named departures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from noiseprop.errors import InputError
from noiseprop.evaluation.settings import Settings, known_settings
from noiseprop.models import Activation
from noiseprop.training import TABLE_1, Precision, Recipe, fast

DEPARTURES = {
    "gradient-sign": "z = |sigma| eps forward, but sigma's gradient is g eps, without sign(sigma)",
    "sigma-adam": "torch.optim.Adam updates sigma, as one weight among the others, in place of Eq. 7",
    "sigma-decay": "the weights' L2 decay of 1e-4 acts on sigma too",
    "sigma-start": "sigma starts from N(0, 1) on Linear layers and Xavier-normal on convolutions, in place of 1",
    "linear-start": "Linear layers with learned noise start Xavier-normal, their biases from N(0, 1)",
    "conv-mean": "convolutions with learned noise learn a mean mu per neuron too, started Xavier-normal",
    "fixed-sigmoid": "the MLPN with Sigmoid has noise of fixed sigma 1, that is, it is an MLP+",
    "silent-plus": "fixed noise acts in training only",
    "early-stopping": "at most 10 epochs, and the first whose accuracy on the test images is above 0.97 is the last",
    "batch-lbfgs": "L-BFGS runs over 128 images at once, on their mean loss, with torch.optim.LBFGS's early stops",
    "single-draw": "attacks on random networks see a single draw of the noise (no EOT)",
}
"""What the released code does otherwise than the paper says, as far as it bears on MNIST (notes.md, items 1 to 7)."""

_SHARED = ("gradient-sign", "sigma-start", "linear-start", "conv-mean", "silent-plus")
RESNET_DEPARTURES = {
    **{name: DEPARTURES[name] for name in _SHARED},
    "sigma-adam": "the weights' optimizer updates sigma, as one weight among the others, in place of Eq. 7",
    "sigma-decay": "the weights' L2 decay acts on sigma too",
    "silent-learned": "learned noise acts in training only, and so does its mean mu",
    "after-addition": "noise stands after the residual addition and the stem's BatchNorm, not on the last convolution",
    "plain-last-linear": "ResNet18's last Linear has no fixed noise",
    "batch-lbfgs": DEPARTURES["batch-lbfgs"],
    "normalised-attacks": "attacks on CIFAR-10 act on normalised images and clamp them to [0, 1] there",
    "single-draw": DEPARTURES["single-draw"],
}
"""The same for the ResNets. Where its ResNet18 has LeakyReLU in place of ReLU is not known, so all is ReLU here."""
_RESNET18_ONLY = ("plain-last-linear", "normalised-attacks")

_STOP_ABOVE, _STOP_AFTER = 0.97, 10


@dataclass(frozen=True)
class Protocol:
    """How networks are trained and judged: the paper's way, but for `departures`, names of DEPARTURES."""

    name: str
    departures: frozenset[str] = frozenset()

    def __contains__(self, departure: str) -> bool:
        return departure in self.departures


PROTOCOLS = {
    "paper": Protocol("paper"),
    "released-code": Protocol("released-code", frozenset(DEPARTURES)),
}


RESNETS = {"table5": "cifar10", "table6": "tiny-imagenet"}
"""The tables of ResNets, and their data sets."""


def departures(table: str) -> Mapping[str, str]:
    """The released code's departures that bear on a table, with what each says."""
    if table not in RESNETS:
        return DEPARTURES
    return {name: says for name, says in RESNET_DEPARTURES.items() if table == "table5" or name not in _RESNET18_ONLY}


def protocol(name: str, switch: Iterable[str] = (), table: str = "table3") -> Protocol:
    """A protocol by its name, with single departures switched: added to `paper`, taken from `released-code`.

    Raises:
        InputError: the protocol is unknown, or the table has no such departure.

    Examples:
        >>> protocol("paper", ["gradient-sign"]).name
        'paper-with-gradient-sign'
        >>> "early-stopping" in protocol("released-code", ["early-stopping"])
        False
    """
    if name not in PROTOCOLS:
        raise InputError(f"{name!r} is no protocol; choose one of {', '.join(PROTOCOLS)}")
    names, known = set(switch), departures(table)
    if unknown := sorted(names - set(known)):
        raise InputError(f"{unknown[0]!r} is no departure of the released code; choose of {', '.join(known)}")
    whole = frozenset(known if PROTOCOLS[name].departures else ())
    if not names:
        return Protocol(name, whole)
    return Protocol("-".join([name, "without" if whole else "with", *sorted(names)]), whole ^ names)


@dataclass(frozen=True)
class Row:
    """One row of a table: a network by its name in `variants.NAMES`, and its activation."""

    model: str
    activation: Activation = "relu"

    @property
    def name(self) -> str:
        """What the row is called: `MLPN, ReLU` or `CNN-AN`."""
        if not self.model.startswith("MLP"):
            return self.model
        return f"{self.model}, {'ReLU' if self.activation == 'relu' else 'Sigmoid'}"

    @property
    def slug(self) -> str:
        """The row's name in paths: `mlpn-relu` or `cnn-an`; a plus becomes `plus`."""
        return self.name.lower().replace(", ", "-").replace("+", "plus")

    @property
    def learned(self) -> bool:
        """Whether the paper learns its noise."""
        return self.model.endswith("N") and self.model != "CNN"

    @property
    def everywhere(self) -> bool:
        """Whether its noise is in the convolutions too."""
        return self.model.endswith(("-A+", "-AN"))


TABLES = {
    "table3": tuple(Row(model, act) for model in ("MLP", "MLP+", "MLPN") for act in ("relu", "sigmoid")),
    **{
        table: tuple(Row(base + noise) for noise in ("", "-MLP+", "-A+", "-MLPN", "-AN"))
        for table, base in (("table4", "CNN"), ("table5", "ResNet18"), ("table6", "ResNet34"))
    },
}
FIGURE_3 = tuple(row for row in TABLES["table3"] if row.activation == "relu")


FAST = {"table5": {"vote_draws": 8}, "table6": {"vote_draws": 8, "trust_images": 64}}
"""What judges ResNets of the `fast` recipe, as much as CPUs get through."""

FEWER = {
    "table5": {"eot_images": 250, "vote_images": 250, "trust_images": 64},
    "table6": {"eot_images": 64, "vote_images": 64, "trust_images": 16},
}
"""Images on which those of them with noise everywhere are attacked with many draws, judged by vote, and checked."""

CNN_VOTES = 2000
"""Images on which CNNs with noise everywhere are judged by vote, 32 whole passes each."""

RecipeName = Literal["table1", "fast"]


def recipe(
    protocol: Protocol,
    dataset: str,
    *,
    epochs: int | None = None,
    precision: Precision = "fp32",
    name: RecipeName = "table1",
) -> Recipe:
    """Table 1's recipe, cut to 10 epochs under "early-stopping", or the `fast` one; their own epochs where None."""
    chosen = TABLE_1[dataset] if name == "table1" else fast(dataset)
    epochs = chosen.epochs if epochs is None else epochs
    if "early-stopping" in protocol:
        epochs = min(epochs, _STOP_AFTER)
    return replace(chosen, epochs=epochs, precision=precision)


def stops(protocol: Protocol, test_accuracy: float) -> bool:
    """Whether training ends after an epoch with this accuracy on the test images."""
    return "early-stopping" in protocol and test_accuracy > _STOP_ABOVE


def attack_settings(
    protocol: Protocol,
    dataset: str,
    table: str = "table3",
    row: Row | None = None,
    name: RecipeName = "table1",
) -> Settings:
    """Table 2's settings; under "single-draw" white-box attacks average over one draw alone.

    K draws of a network with noise everywhere cost K whole passes. Votes of such CNNs are therefore taken on fewer
    images. ResNets of the `fast` recipe, which is for CPUs, vote by fewer draws, and those of them with noise
    everywhere are voted on, checked and attacked with 20 draws on fewer images; what is scored by one draw keeps to all
    of them. A ResNet34's pass on Tiny-ImageNet costs two of a ResNet18's on CIFAR-10, so its images are fewer still.
    """
    settings = known_settings(dataset)
    everywhere = row is not None and row.everywhere
    if table == "table4":
        settings = replace(settings, batch_size=256)  # feature maps of 2,000 images would leave the cache
        if everywhere:
            settings = replace(settings, vote_images=CNN_VOTES)
    if table in RESNETS and name == "fast":
        most = FAST[table] | (FEWER[table] if everywhere else {})
        settings = replace(settings, **{name: min(count, getattr(settings, name)) for name, count in most.items()})
    return replace(settings, attack_draws=(1,)) if "single-draw" in protocol else settings
