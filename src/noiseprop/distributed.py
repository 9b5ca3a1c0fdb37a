"""Process groups of torchrun: sharding of batches and images, sums over processes, guards for the first process.

    torchrun --nproc-per-node 2 -m noiseprop train --model MLPN --out runs/mlpn
    torchrun --nproc-per-node 2 -m noiseprop evaluate runs/mlpn

Every process holds the whole model and all images, draws the same order and augmentation, and takes its own rows of
each batch. Noise depends on the position of a sample in the whole batch (see `noiseprop.training.sharding`), so any
number of processes draws the same noise bit for bit. The losses differ by rounding only, unless samples interact.
`DistributedDataParallel` averages the gradients of weights and sigma, over gloo on CPUs and nccl on GPUs.

Samples interact in batch norm: each process normalizes its rows by their own mean and variance, so such a network
learns differently with another number of processes. After every epoch all processes take over the running statistics
of the first one.

An evaluation is divided into pieces, each of which one process computes alone: see
`noiseprop.evaluation.evaluate.evaluate`.
"""

import json
import os
from collections.abc import Generator, Iterator, Mapping
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

_IGNORED_LABEL = -100  # label of a row without weight; cross_entropy ignores it

# Option of DistributedDataParallel that stops buffers from being sent before every step, by version of torch
_HAS_NEW_OPTION = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _HAS_NEW_OPTION else "broadcast_buffers": False}

_is_alone: ContextVar[bool] = ContextVar("is_alone", default=False)


@dataclass(frozen=True)
class World:
    """Processes that work on one model together, seen from one of them.

    Examples:
        >>> [World(rank, 4).shard_rows(10) for rank in range(4)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that prints and writes."""
        return self.rank == 0

    def shard_rows(self, count: int) -> slice:
        """Return this process's rows of a batch; the shares of two processes differ by at most one row."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def shard_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's rows of a batch (x, y).

        A process without rows gets one that its loss ignores, because all processes have to make the same passes.
        """
        rows = self.shard_rows(len(y))
        return (x[rows], y[rows]) if rows.start < rows.stop else (x[:1], torch.full_like(y[:1], _IGNORED_LABEL))

    def deal_pieces(self, count: int, size: int) -> Iterator[slice]:
        """Yield this process's pieces of `count` items that are cut into pieces of `size` and dealt out in turn.

        >>> list(World(1, 3).deal_pieces(10, 2))
        [slice(2, 4, None), slice(8, 10, None)]
        """
        for start in range(self.rank * size, count, self.size * size):
            yield slice(start, min(start + size, count))

    def share_loss(self, logits: Tensor, y: Tensor, count: int) -> Tensor:
        """Return this process's share of a batch's loss; its mean over the processes is the mean over the batch.

        Args:
            logits: logits of this process's rows, (b, classes).
            y: labels, (b,).
            count: rows of the whole batch, of which processes may have unequal shares.
        """
        if self.size == 1:
            return functional.cross_entropy(logits, y)
        return functional.cross_entropy(logits, y, reduction="sum") * (self.size / count)

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the processes; all start from the first one's values.

        The first step determines the order in which gradients are summed. A new wrapper for every epoch therefore makes
        a run that resumes from a checkpoint bit-identical to an uninterrupted one.
        """
        if self.size == 1:
            return model
        # A static graph allows unused parameters without a search in every step.
        return DistributedDataParallel(model, static_graph=True, **_NO_BUFFER_SYNC)

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the first process's buffers, such as running statistics of batch norm, to all processes."""
        if self.size > 1:
            for buffer in model.buffers():
                copy = buffer.detach().contiguous()
                dist.broadcast(copy, 0)
                buffer.copy_(copy)

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of a value over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def wait_for_all(self) -> None:
        """Wait until every process gets here."""
        if self.size > 1:
            dist.barrier()

    def check_same(self, plan: Mapping[str, Any]) -> None:
        """Stop all processes with an error if one of them is about to do something else than the first.

        Args:
            plan: JSON-able description of the work of this process.

        Raises:
            RunError: the processes differ; raised in each of them.
        """
        if self.size == 1:
            return
        first, *others = _gather_texts(json.dumps(plan), self.size)
        for rank, other in enumerate(others, 1):
            if differences := _list_differences(json.loads(first), json.loads(other)):
                raise RunError(
                    f"process {rank} of {self.size} does not agree with process 0: {', '.join(differences)}; start all "
                    "with the same command, on data and in a run folder that all can see"
                )

    @contextmanager
    def report_lost_process(self) -> Generator[None]:
        """Turn the loss of another process into a RunError.

        Raises:
            RunError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            is_lost = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text
            if self.size == 1 or not is_lost:
                raise
            raise RunError(
                f"process {self.rank} of {self.size} has lost another one and stops; see the message of that one, then "
                "start all again (a training with --resume)"
            ) from error


def get_world() -> World:
    """Return the processes of torch's process group; this process alone without one, and inside `act_alone`."""
    if dist.is_available() and dist.is_initialized() and not _is_alone.get():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def act_alone() -> Generator[None]:
    """Let this process do the work of a block by itself, even inside a process group."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@contextmanager
def join_processes() -> Generator[World]:
    """Join the process group of torchrun; without torchrun, this process is alone.

    Raises:
        RunError: the other processes cannot be reached.
    """
    if not is_started_by_torchrun() or get_world().size > 1:
        yield get_world()
        return
    try:
        # nccl serves tensors on GPUs; small tensors on CPUs use gloo there, too.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"the processes of torchrun could not meet ({reason}); check its --rdzv options") from error
    yield get_world()
    dist.destroy_process_group()  # after an error the process ends, which the others notice


def is_started_by_torchrun() -> bool:
    """Return whether torchrun has started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _gather_texts(text: str, size: int) -> list[str]:
    """Return the text of each process, by rank; sent as bytes, because torch would pickle an object."""
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(mine)]))
    longest = max(int(length) for length in lengths)
    padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(padded, functional.pad(mine, (0, longest - len(mine))))
    return [bytes(row[: int(length)].tolist()).decode() for row, length in zip(padded, lengths, strict=True)]


def _list_differences(first: Any, other: Any, name: str = "") -> list[str]:
    """Return the entries in which two JSON documents differ, by dotted names."""
    if isinstance(first, dict) and isinstance(other, dict):
        keys = sorted(first.keys() | other.keys())
        return [
            found
            for key in keys
            for found in _list_differences(first.get(key), other.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if first == other else [f"{name} = {other!r} there and {first!r} in process 0"]
