"""Measurements of a training, epoch by epoch."""

from itertools import starmap
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.data import Dataset, batches
from noiseprop.distributed import World
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.module_state import preserve_modes
from noiseprop.training.memory_format import find_memory_format
from noiseprop.training.recipes import Precision
from noiseprop.training.sharding import shard_batches

_Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Nonnegative = Annotated[float, msgspec.Meta(ge=0)]
_SINGLE_PROCESS = World()


class SigmaStatistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Statistics of |sigma| over the neurons of a layer; `std` is that of the population."""

    mean: _Nonnegative
    std: _Nonnegative
    min: _Nonnegative
    max: _Nonnegative


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One epoch of a training, and one line of metrics.jsonl.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean cross-entropy in nats over the training images, each before the update of its step.
        train_accuracy: fraction of correct training images, likewise.
        validation_loss: mean cross-entropy over the validation images after the epoch.
        validation_accuracy: fraction of correct validation images.
        sigma: statistics by path of the noise layer.
        seconds: duration of the epoch.
    """

    epoch: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    train_loss: float
    train_accuracy: _Fraction
    validation_loss: float
    validation_accuracy: _Fraction
    sigma: dict[str, SigmaStatistics]
    seconds: _Nonnegative


def compute_sigma_statistics(model: nn.Module) -> dict[str, SigmaStatistics]:
    """Return the statistics of |sigma| by path of the noise layer."""
    statistics: dict[str, SigmaStatistics] = {}
    for name, layer in noise_layers(model).items():
        size = layer.sigma.detach().abs().double()
        values = (size.mean(), size.std(correction=0), size.min(), size.max())
        statistics[name] = SigmaStatistics(*map(float, values))
    return statistics


@torch.no_grad()
def loss_and_accuracy(
    model: nn.Module,
    dataset: Dataset,
    *,
    precision: Precision = "fp32",
    batch_size: int = 500,
    world: World = _SINGLE_PROCESS,
    memory_format: torch.memory_format | None = None,
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy in eval mode, with the noise of inference, one draw per image.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, classes); its mode is left as found.
        dataset: images and labels.
        precision: "bf16" computes under autocast.
        batch_size: images per pass.
        world: processes that share the images and return the same figures; this process alone by default.
        memory_format: layout of the images; by default that of the model's convolution weights.

    Returns:
        Mean cross-entropy in nats, and the fraction of correct images.
    """
    device, layout = next(model.parameters()).device, memory_format or find_memory_format(model)
    loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    with preserve_modes(model, training=False), shard_batches(model, world) as shard:
        for x, y in starmap(shard, batches(dataset, batch_size, generator=None)):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits: Tensor = model(x.to(device).contiguous(memory_format=layout))
            loss += functional.cross_entropy(logits.float(), y.to(device), reduction="sum")
            correct += (logits.argmax(1) == y.to(device)).sum()
    return (
        float(world.sum_over_processes(loss)) / len(dataset),
        int(world.sum_over_processes(correct)) / len(dataset),
    )
