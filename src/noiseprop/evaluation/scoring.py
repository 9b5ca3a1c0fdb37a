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

from noiseprop.attacks.validation import check_logits
from noiseprop.corruptions import CHUNK
from noiseprop.data import Dataset, batches
from noiseprop.distributed import World, world
from noiseprop.evaluation.results import State
from noiseprop.evaluation.settings import NO_LIMIT
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_kept, noise_of

Outcomes = dict[State, npt.NDArray[np.bool_]]
Chunk = tuple[slice, Tensor, Tensor]  # which of the images, these (b, C, H, W), and their labels (b,)


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
    model: nn.Module, chunks: Iterable[Chunk], count: int, *, draws: int, rows: int, votes: int = NO_LIMIT
) -> Outcomes:
    """Which images the model gets right in each of its states; call it inside `judging(model)`.

    "one" is the first of the draws over which "vote" takes the most frequent class (a tie goes to the tied class of the
    highest mean probability). A network without noise at inference has the state "off" alone. An image's draws are its
    own, by its number and the place of the model's noise, however images are cut into pieces.

    Args:
        model: images to logits (B, classes).
        chunks: images in [0, 1], as from `chunks`; of several processes, those of this one.
        count: N, of all images.
        draws: of the vote.
        rows: images times draws that go through the model at once.
        votes: the vote is taken on so many images, the first ones; the others get one draw.

    Returns:
        For each state a boolean array (N,), by image; that of "vote" may be shorter. All processes get all of it.

    Raises:
        InputError: NaN or wrong-shaped logits, or labels out of range.
    """
    states: list[State] = ["off", "one", "vote"] if noise_is_on(model) else ["off"]
    sizes: dict[State, int] = {state: min(count, votes) if state == "vote" else count for state in states}
    right: dict[State, Tensor] = {state: torch.zeros(size, dtype=torch.uint8) for state, size in sizes.items()}
    for where, x, y in chunks:
        if "vote" in right:
            voting = min(max(0, votes - where.start), len(y))
            voted = _right(model, where.start, x[:voting], y[:voting], draws=draws, rows=rows)
            single = _right(model, where.start + voting, x[voting:], y[voting:], draws=1, rows=rows)
            right["one"][where] = torch.cat([voted[0], single[0]])
            right["vote"][where.start : where.start + voting] = voted[1]
        with noise_kept(model), sampling(model, "off"):  # a pass moves the noise on, also where it is off
            pieces = World().pieces(len(y), rows)
            hits = [check_logits(model(x[piece]), y[piece]).argmax(-1) == y[piece] for piece in pieces]
            right["off"][where] = torch.cat(hits).cpu()
    return {state: np.asarray(world().total(found), dtype=np.bool_) for state, found in right.items()}


def _right(model: nn.Module, first: int, x: Tensor, y: Tensor, *, draws: int, rows: int) -> Tensor:
    """Which images, the first one being number `first`, are right in their first draw, and by vote: bool (2, b)."""
    found = [torch.zeros(2, 0, dtype=torch.bool)]
    for piece in World().pieces(len(y), max(1, rows // draws)):
        with noise_of(model, first + piece.start):
            logits = draw_logits(model, x[piece], y[piece], draws)
        found.append(torch.stack([logits[0].argmax(-1) == y[piece], _vote(logits) == y[piece]]).cpu())
    return torch.cat(found, 1)


def chunks(x: Tensor, y: Tensor) -> Iterator[Chunk]:
    """Images and labels in chunks for `score`; of several processes, those of this one."""
    for where in world().pieces(len(y), CHUNK):
        yield where, x[where], y[where]


def chunks_of(dataset: Dataset, device: torch.device) -> Iterator[Chunk]:
    """As `chunks`, the images of a data set."""
    for where in world().pieces(len(dataset), CHUNK):
        x, y = next(batches(dataset[where], CHUNK, generator=None))
        yield where, x.to(device), y.to(device)


@torch.no_grad()
def expected_accuracy(model: nn.Module, x: Tensor, y: Tensor, *, draws: int, rows: int) -> float:
    """Accuracy expected of one draw: the mean over `draws` draws and all images, with the noise the model has now.

    The processes of a process group share the images and find the same figure.
    """
    here, right = world(), torch.zeros((), dtype=torch.int64)
    for piece in here.pieces(len(y), max(1, rows // draws)):
        with noise_of(model, piece.start):
            right += int((draw_logits(model, x[piece], y[piece], draws).argmax(-1) == y[piece]).sum())
    return int(here.total(right)) / (draws * len(y))


def draw_logits(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """Logits (draws, B, classes) over fresh draws, checked."""
    with sampling(model, "fresh", draws=draws):
        return check_logits(model(x), y, draws)


def _vote(logits: Tensor) -> Tensor:
    """Most frequent class over draws: (K, B, classes) to (B,). Mean probabilities, at most 1/2 here, break ties."""
    votes = functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)  # (B, classes)
    return (votes + logits.float().softmax(-1).mean(0) / 2).argmax(-1)
