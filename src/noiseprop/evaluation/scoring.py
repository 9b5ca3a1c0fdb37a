"""Scores of a network in its three states: noise off, one fresh draw, and the vote over many draws."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.attacks.validation import check_logits, check_module
from noiseprop.corruptions import CHUNK
from noiseprop.data import Dataset, batches
from noiseprop.distributed import World, get_world
from noiseprop.evaluation.results import State
from noiseprop.evaluation.settings import NO_LIMIT
from noiseprop.files.checksum import derive_seed
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.module_state import preserve_modes
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_kept, noise_of

Outcomes = dict[State, npt.NDArray[np.bool_]]
Chunk = tuple[slice, Tensor, Tensor]  # positions of the images, the images (b, C, H, W), and their labels (b,)


def has_inference_noise(model: nn.Module) -> bool:
    """Return whether the model has a noise layer that acts at inference."""
    return any(layer.at_inference for layer in noise_layers(model).values())


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Put a model into eval mode, and restore its modes and noise state afterwards, also after an error.

    Inside, every process of a process group draws the same noise for the same pass and position of an image.
    """
    check_module(model)
    with preserve_modes(model, training=False), noise_of(model, 0):
        yield


def derive_noise_key(seed: int, *parts: str | int) -> int:
    """Return the key of one use of noise, derived from the seed and the purpose of the noise.

    Examples:
        >>> derive_noise_key(0, "pgd", 20, "attack") == derive_noise_key(0, "pgd", 20, "score")
        False
    """
    return derive_seed(seed, *parts)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


@torch.no_grad()
def score_states(
    model: nn.Module, chunks: Iterable[Chunk], count: int, *, draws: int, rows: int, votes: int = NO_LIMIT
) -> Outcomes:
    """Score images in each state of the model; call it inside `evaluation_mode(model)`.

    "one" is the first of the draws over which "vote" takes the most frequent class (a tie goes to the tied class of the
    highest mean probability). A network without noise at inference has the state "off" alone. The draws of an image
    depend on its position and on the model's noise state, however images are cut into pieces.

    Args:
        model: images to logits (B, classes).
        chunks: images in [0, 1], as from `iterate_chunks`; in a process group, those of this process.
        count: N, number of all images.
        draws: draws of the vote.
        rows: images times draws in one pass of the model.
        votes: the vote is taken on this many images, the first ones; the others get one draw.

    Returns:
        For each state a boolean array (N,) that marks correct images; that of "vote" may be shorter. All processes
        return the whole arrays.

    Raises:
        InputError: NaN or wrong-shaped logits, or labels out of range.
    """
    states: list[State] = ["off", "one", "vote"] if has_inference_noise(model) else ["off"]
    sizes: dict[State, int] = {state: min(count, votes) if state == "vote" else count for state in states}
    right: dict[State, Tensor] = {state: torch.zeros(size, dtype=torch.uint8) for state, size in sizes.items()}
    for where, x, y in chunks:
        if "vote" in right:
            voting = min(max(0, votes - where.start), len(y))
            voted = _score_draws(model, where.start, x[:voting], y[:voting], draws=draws, rows=rows)
            single = _score_draws(model, where.start + voting, x[voting:], y[voting:], draws=1, rows=rows)
            right["one"][where] = torch.cat([voted[0], single[0]])
            right["vote"][where.start : where.start + voting] = voted[1]
        with noise_kept(model), sampling(model, "off"):  # a pass advances the noise, even where it is off
            pieces = World().deal_pieces(len(y), rows)
            hits = [check_logits(model(x[piece].clone()), y[piece]).argmax(-1) == y[piece] for piece in pieces]
            right["off"][where] = torch.cat(hits).cpu()
    return {state: np.asarray(get_world().sum_over_processes(found), dtype=np.bool_) for state, found in right.items()}


def _score_draws(model: nn.Module, first: int, x: Tensor, y: Tensor, *, draws: int, rows: int) -> Tensor:
    """Return which images are correct in their first draw, and by vote: bool (2, b); the first has position `first`."""
    correct = [torch.zeros(2, 0, dtype=torch.bool)]
    for piece in World().deal_pieces(len(y), max(1, rows // draws)):
        with noise_of(model, first + piece.start):
            logits = sample_logits(model, x[piece], y[piece], draws)
        correct.append(torch.stack([logits[0].argmax(-1) == y[piece], _majority_vote(logits) == y[piece]]).cpu())
    return torch.cat(correct, 1)


def iterate_chunks(x: Tensor, y: Tensor) -> Iterator[Chunk]:
    """Yield images and labels in chunks for `score_states`; in a process group, those of this process."""
    for where in get_world().deal_pieces(len(y), CHUNK):
        yield where, x[where], y[where]


def iterate_dataset(dataset: Dataset, device: torch.device) -> Iterator[Chunk]:
    """Yield the images of a data set in chunks, like `iterate_chunks`."""
    for where in get_world().deal_pieces(len(dataset), CHUNK):
        x, y = next(batches(dataset[where], CHUNK, generator=None))
        yield where, x.to(device), y.to(device)


@torch.no_grad()
def expected_accuracy(model: nn.Module, x: Tensor, y: Tensor, *, draws: int, rows: int) -> float:
    """Return the expected accuracy of one draw: the mean over `draws` draws and all images, with the current noise.

    The processes of a process group share the images and return the same figure.
    """
    processes, right = get_world(), torch.zeros((), dtype=torch.int64)
    for piece in processes.deal_pieces(len(y), max(1, rows // draws)):
        with noise_of(model, piece.start):
            right += int((sample_logits(model, x[piece], y[piece], draws).argmax(-1) == y[piece]).sum())
    return int(processes.sum_over_processes(right)) / (draws * len(y))


def sample_logits(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """Return checked logits (draws, B, classes) over fresh draws; the model gets a copy of the images."""
    with sampling(model, "fresh", draws=draws):
        return check_logits(model(x.clone()), y, draws)


def _majority_vote(logits: Tensor) -> Tensor:
    """Return the most frequent class over draws, (K, B, classes) to (B,); mean probabilities break ties."""
    votes = functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)  # (B, classes)
    return (votes + logits.float().softmax(-1).mean(0) / 2).argmax(-1)
