"""The two protocols of the reproduction: the paper's text, and its released code as a set of named departures."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from noiseprop.errors import InputError
from noiseprop.evaluation.settings import Settings, known_settings
from noiseprop.nets import Activation
from noiseprop.training import TABLE_1, Precision, Recipe

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


def protocol(name: str, switch: Iterable[str] = ()) -> Protocol:
    """A protocol by its name, with single departures switched: added to `paper`, taken from `released-code`.

    Raises:
        InputError: the protocol or a departure is unknown.

    >>> protocol("paper", ["gradient-sign"]).name
    'paper-with-gradient-sign'
    >>> "early-stopping" in protocol("released-code", ["early-stopping"])
    False
    """
    if name not in PROTOCOLS:
        raise InputError(f"{name!r} is no protocol; choose one of {', '.join(PROTOCOLS)}")
    names = set(switch)
    if unknown := sorted(names - set(DEPARTURES)):
        raise InputError(f"{unknown[0]!r} is no departure of the released code; choose of {', '.join(DEPARTURES)}")
    if not names:
        return PROTOCOLS[name]
    word = "without" if PROTOCOLS[name].departures else "with"
    return Protocol("-".join([name, word, *sorted(names)]), PROTOCOLS[name].departures ^ names)


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


TABLES = {
    "table3": tuple(Row(model, act) for model in ("MLP", "MLP+", "MLPN") for act in ("relu", "sigmoid")),
    "table4": tuple(Row(model) for model in ("CNN", "CNN-MLP+", "CNN-A+", "CNN-MLPN", "CNN-AN")),
}
FIGURE_3 = tuple(row for row in TABLES["table3"] if row.activation == "relu")


def recipe(protocol: Protocol, dataset: str, *, epochs: int = 30, precision: Precision = "fp32") -> Recipe:
    """Table 1's recipe, cut to 10 epochs under "early-stopping"."""
    if "early-stopping" in protocol:
        epochs = min(epochs, _STOP_AFTER)
    return replace(TABLE_1[dataset], epochs=epochs, precision=precision)


def stops(protocol: Protocol, test_accuracy: float) -> bool:
    """Whether training ends after an epoch with this accuracy on the test images."""
    return "early-stopping" in protocol and test_accuracy > _STOP_ABOVE


def attack_settings(protocol: Protocol, dataset: str, table: str = "table3") -> Settings:
    """Table 2's settings; under "single-draw" white-box attacks average over one draw alone."""
    settings = known_settings(dataset)
    if table == "table4":
        settings = replace(settings, batch_size=256)  # feature maps of 2,000 images would leave the cache
    return replace(settings, attack_draws=(1,)) if "single-draw" in protocol else settings
