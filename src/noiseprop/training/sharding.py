"""Shares of a batch in several processes: each has its own rows, and the noise of exactly these rows."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import Tensor, nn

from noiseprop.distributed import World
from noiseprop.noise.stream import noise_streams

ShardBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a whole batch (x, y) to the rows of this process."""


@contextmanager
def shard_batches(model: nn.Module, world: World) -> Generator[ShardBatch]:
    """Provide a function that takes this process's rows of a batch and gives the model's noise their positions.

    Noise depends on the position of a sample in the whole batch, so any number of processes draws the same noise.
    """
    streams = noise_streams(model)

    def shard_batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if world.size == 1:
            return x, y
        for stream in streams:
            stream.first_sample = world.shard_rows(len(y)).start
        return world.shard_batch(x, y)

    try:
        yield shard_batch
    finally:
        for stream in streams:
            stream.first_sample = 0
