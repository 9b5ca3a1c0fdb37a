"""Shares of a batch in several processes: each has its own rows, and the noise of exactly these rows."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import Tensor, nn

from noiseprop.distributed import World
from noiseprop.noise.stream import find_sources, set_first_sample

ShardBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a whole batch (x, y) to the rows of this process."""


@contextmanager
def shard_batches(model: nn.Module, world: World) -> Generator[ShardBatch]:
    """Provide a function that takes this process's rows of a batch and gives the model's noise their positions.

    Noise depends on the position of a sample in the whole batch, so any number of processes draws the same noise.
    """
    sources = find_sources(model)
    before = [source.state.first_sample for source in sources]
    set_first_sample(sources, 0, relative=False)  # one process draws the noise of whole batches, whatever its rank

    def shard_batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if world.size == 1:
            return x, y
        set_first_sample(sources, world.shard_rows(len(y)).start, relative=False)
        return world.shard_batch(x, y)

    try:
        yield shard_batch
    finally:
        for source, first in zip(sources, before, strict=True):
            set_first_sample([source], first, relative=False)
