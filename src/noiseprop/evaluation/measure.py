"""Scoring a network in its three states: noise off, one fresh draw, and the vote over many draws."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.attacks.threat import check_logits
from noiseprop.evaluation.record import State
from noiseprop.evaluation.settings import NO_LIMIT
from noiseprop.noise.attach import noise_layers
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_kept

Outcomes = dict[State, npt.NDArray[np.bool_]]


def noise_is_on(model: nn.Module) -> bool:
    """Whether the model has a noise layer that acts at inference."""
    return any(layer.at_inference for layer in noise_layers(model).values())


@contextmanager
def judging(model: nn.Module) -> Generator[None]:
    """Hold a model in eval mode and give it back as it was: modes and the place of its noise, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with noise_kept(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


def noise_key(seed: int, *parts: str | int) -> int:
    """The key of one use of noise: 62 bits of SHA-256 of the seed and what the noise is for.

    Examples:
        >>> noise_key(0, "pgd", 20, "attack") == noise_key(0, "pgd", 20, "score")
        False
    """
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes: the device of its first parameter or buffer."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


@torch.no_grad()
def score(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, draws: int, rows: int, votes: int = NO_LIMIT
) -> Outcomes:
    """Which images the model gets right in each of its states; call it inside `judging(model)`.

    "one" is the first of the draws over which "vote" takes the most frequent class (a tie goes to the tied class of the
    highest mean probability). A network without noise at inference has the state "off" alone.

    Args:
        model: images to logits (B, classes).
        batches: pairs of images (B, C, H, W) in [0, 1] and labels (B,).
        draws: of the vote.
        rows: images times draws that go through the model at once.
        votes: the vote is taken on so many images, the first ones; the others get one draw.

    Returns:
        For each state a boolean array (N,), in the order of the batches; that of "vote" may be shorter.

    Raises:
        InputError: NaN or wrong-shaped logits, or labels out of range.
    """
    states: list[State] = ["off", "one", "vote"] if noise_is_on(model) else ["off"]
    correct: dict[State, list[Tensor]] = {state: [] for state in states}
    for x, y in batches:
        if "vote" in correct:
            voting = min(votes, len(y))
            votes -= voting
            for part, labels in parts(x[:voting], y[:voting], rows // draws) if voting else ():
                logits = draw_logits(model, part, labels, draws)
                correct["one"].append(logits[0].argmax(-1) == labels)
                correct["vote"].append(_vote(logits) == labels)
            for part, labels in parts(x[voting:], y[voting:], rows) if voting < len(y) else ():
                correct["one"].append(draw_logits(model, part, labels, 1)[0].argmax(-1) == labels)
        with sampling(model, "off"):
            for part, labels in parts(x, y, rows):
                correct["off"].append(check_logits(model(part), labels).argmax(-1) == labels)
    return {state: torch.cat(pieces).cpu().numpy() for state, pieces in correct.items()}


@torch.no_grad()
def expected_accuracy(model: nn.Module, x: Tensor, y: Tensor, *, draws: int, rows: int) -> float:
    """Accuracy expected of one draw: the mean over `draws` draws and all images, with the noise the model has now."""
    right = 0.0
    for part, labels in parts(x, y, rows // draws):
        right += float((draw_logits(model, part, labels, draws).argmax(-1) == labels).double().mean(0).sum())
    return right / len(y)


def draw_logits(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """Logits (draws, B, classes) over fresh draws, checked."""
    with sampling(model, "fresh", draws=draws):
        return check_logits(model(x), y, draws)


def parts(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch cut into pieces of `size` images, or of one where size is less."""
    size = max(1, size)
    yield from zip(x.split(size), y.split(size), strict=True)


def _vote(logits: Tensor) -> Tensor:
    """Most frequent class over draws: (K, B, classes) to (B,). Mean probabilities, at most 1/2 here, break ties."""
    votes = functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)  # (B, classes)
    return (votes + logits.float().softmax(-1).mean(0) / 2).argmax(-1)
