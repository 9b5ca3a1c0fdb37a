"""One model over several processes: each has its own rows of every batch, and the noise of just these rows.

    torchrun --nproc-per-node 2 -m noiseprop train --model MLPN --out runs/mlpn
    torchrun --nproc-per-node 2 -m noiseprop evaluate runs/mlpn

Every process holds the whole model and all images, and draws the same order and augmentation; of each batch it takes
the rows that are its own. Noise belongs to a sample by its place in the whole batch, so any number of processes draws
the same noise, bit for bit, and a network whose samples do not meet has the same losses but for rounding.
`DistributedDataParallel` averages the gradients, sigma's with the weights', over gloo on CPUs and nccl on GPUs.

Batch norm is where samples meet: each process normalises its rows by their own mean and variance, so such a network
learns otherwise with another number of processes. Its running statistics are those of the first process, which the
others take over after every epoch.

An evaluation is dealt out in pieces, which each process computes as one process would: see
`noiseprop.evaluation.evaluate.evaluate`.
"""

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from noiseprop.errors import RunError
from noiseprop.noise.stream import noise_streams

_NOBODY = -100  # the label of a row that counts for nothing; cross_entropy ignores it

# How DistributedDataParallel is told not to send buffers before every step, by the version of torch
_NEW = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_NOT_IN_EVERY_STEP: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}

Own = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@dataclass(frozen=True)
class World:
    """The processes that train one model together, seen from one of them.

    Examples:
        >>> [World(rank, 4).rows(10) for rank in range(4)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of a batch; the shares of two processes differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def pieces(self, count: int, size: int) -> Iterator[slice]:
        """This process's pieces of `count` things that are cut into pieces of `size` and dealt out in turn.

        >>> list(World(1, 3).pieces(10, 2))
        [slice(2, 4, None), slice(8, 10, None)]
        """
        for start in range(self.rank * size, count, self.size * size):
            yield slice(start, min(start + size, count))

    @contextmanager
    def sharding(self, model: nn.Module) -> Generator[Own]:
        """What cuts a whole batch (x, y) down to the rows of this process, and tells the model's noise which they are.

        A process without a row gets one that counts for nothing, for all have to make the same passes.
        """
        streams = noise_streams(model)

        def own(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if self.size == 1:
                return x, y
            rows = self.rows(len(y))
            for stream in streams:
                stream.first_sample = rows.start
            return (x[rows], y[rows]) if rows.start < rows.stop else (x[:1], torch.full_like(y[:1], _NOBODY))

        try:
            yield own
        finally:
            for stream in streams:
                stream.first_sample = 0

    def loss(self, logits: Tensor, y: Tensor, count: int) -> Tensor:
        """This process's share of a batch's loss: its mean over the processes is the mean over the batch.

        Args:
            logits: of this process's rows (b, classes).
            y: labels (b,).
            count: rows of the whole batch, of which the processes may have unequal shares.
        """
        if self.size == 1:
            return functional.cross_entropy(logits, y)
        return functional.cross_entropy(logits, y, reduction="sum") * (self.size / count)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes; all begin with the first one's weights and buffers.

        The order in which gradients are summed is found out in the first step. Made anew for every epoch, this makes a
        run that goes on from a checkpoint equal to the bit to one that was never stopped.
        """
        if self.size == 1:
            return model
        # A static graph allows for parameters that the network does not use, without a search in every step.
        return DistributedDataParallel(model, static_graph=True, **_NOT_IN_EVERY_STEP)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, which batch norm has made different."""
        if self.size > 1:
            for buffer in model.buffers():
                copy = buffer.detach().contiguous()
                dist.broadcast(copy, 0)
                buffer.copy_(copy)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Stop all processes, with one sentence, where one of them is to do something else than the first.

        Args:
            what: JSON-able; what this process is to do.

        Raises:
            RunError: the processes differ; in each of them.
        """
        if self.size == 1:
            return
        first, *others = _gathered(json.dumps(what), self.size)
        for rank, other in enumerate(others, 1):
            if different := _differences(json.loads(first), json.loads(other)):
                raise RunError(
                    f"process {rank} of {self.size} does not agree with process 0: {', '.join(different)}; start all "
                    "with the same command, on data and in a run folder that all see"
                )

    @contextmanager
    def watched(self) -> Generator[None]:
        """Turn the news that another process has ended into a sentence.

        Raises:
            RunError: one has.
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            lost = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text
            if self.size == 1 or not lost:
                raise
            raise RunError(
                f"process {self.rank} of {self.size} has lost another one, so it stops; see what that one said, and "
                "start all again, a training with --resume"
            ) from error


def world() -> World:
    """The processes of torch's process group, where there is one; else, and inside `alone`, this process alone."""
    if dist.is_available() and dist.is_initialized() and not _alone.get():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def alone() -> Generator[None]:
    """Let this process do a block's work by itself, though there may be others."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def joined() -> Generator[World]:
    """Meet the other processes that torchrun has started; without torchrun, this process is alone.

    Raises:
        RunError: they cannot be reached.
    """
    if not started_by_torchrun() or world().size > 1:
        yield world()
        return
    try:
        # With nccl for what is on GPUs; small things on CPUs go over gloo there too.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"the processes of torchrun could not meet ({reason}); check its --rdzv options") from error
    yield world()
    dist.destroy_process_group()  # after an error the process ends, by which the others know


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process with others beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _gathered(text: str, size: int) -> list[str]:
    """A text of each process, by rank; as bytes, for torch would pickle an object."""
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(mine)]))
    longest = max(int(length) for length in lengths)
    padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(padded, functional.pad(mine, (0, longest - len(mine))))
    return [bytes(row[: int(length)].tolist()).decode() for row, length in zip(padded, lengths, strict=True)]


def _differences(first: Any, other: Any, name: str = "") -> list[str]:
    """In which entries two JSON documents differ, by their dotted names."""
    if isinstance(first, dict) and isinstance(other, dict):
        keys = sorted(first.keys() | other.keys())
        return [
            said for key in keys for said in _differences(first.get(key), other.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if first == other else [f"{name} = {other!r} there and {first!r} in process 0"]
