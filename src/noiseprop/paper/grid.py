"""Many runs at once: each by a process of its own, here (spawned, never forked) or on a cluster."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Empty
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from noiseprop.environment import count_cores
from noiseprop.errors import InputError, RunError
from noiseprop.paper.reproduction import Job, do, is_finished

Show = Callable[[str, int, int, str], None]
"""Called with a job's name, the steps done of what it does, their number, and what that is, or DONE at its end."""

DONE = "the whole run"
Message = tuple[str, int, int, str]
_MOMENT = 0.2  # seconds


class Workers(Protocol):
    """Processes at work on jobs."""

    def heard(self) -> list[Message]:
        """What they have told since the last call, if need be after a moment."""
        ...

    def ended(self) -> list[Job]:
        """The jobs that have ended since the last call.

        Raises:
            RunError: one has failed, or its process was lost for good.
        """
        ...


Start = Callable[[Sequence[Job], int], AbstractContextManager[Workers]]
"""Sets workers to jobs, so many to a machine like this one; they stop at the end of the block, whatever is left."""


def run_all(jobs: Sequence[Job], *, processes: int, show: Show, start: Start | None = None) -> None:
    """Do all jobs, `processes` at a time; what an earlier call has finished is not done again.

    Each process computes with cores // processes threads. All stop when this one does, however it ends: Ctrl-C and
    errors let local ones come to their next step, a kill ends them at once. Then every run is where its last finished
    epoch, or its evaluation, left it.

    Args:
        jobs: runs under one root.
        processes: how many share the cores of a machine like this one.
        show: is told of their progress, and of each one's end.
        start: whose processes; those of this machine where None. `noiseprop.paper.cluster.on_ray` has others.

    Raises:
        InputError: processes < 1.
        RunError: another process works in the same folder; a worker died; or a job failed.
    """
    if processes < 1:
        raise InputError(f"--jobs is {processes}; give 1 or more")
    root = jobs[0].root
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):
            left = [job for job in jobs if not is_finished(job)]
            for job in jobs:
                if job not in left:
                    show(job.name, 1, 1, DONE)
            if left:
                with (start or here)(left, min(processes, len(left))) as workers:
                    _follow(left, workers, show)
    except Timeout as error:
        raise RunError(f"{root}: another `noiseprop reproduce` is at work there; wait for it or stop it") from error


def threads_each(processes: int) -> int:
    """How many threads each of some processes has that share the cores of this machine."""
    return max(1, count_cores() // processes)


def prepare(threads: int) -> None:
    """Begin a worker."""
    torch.set_num_threads(threads)
    # that draws cost full passes with noise in residual branches is known here: such networks see fewer images
    warnings.filterwarnings("ignore", ".*draws cannot share what comes before the noise")


def _follow(jobs: Sequence[Job], workers: Workers, show: Show) -> None:
    """Pass on what the workers tell until all jobs have ended, or raise the first error."""
    left = {job.name for job in jobs}
    while left:
        for name, done, total, what in workers.heard():
            if name in left:  # a last word may come late
                show(name, done, total, what)
        for job in workers.ended():
            left.remove(job.name)
            show(job.name, 1, 1, DONE)


@contextmanager
def here(jobs: Sequence[Job], processes: int) -> Generator[Workers]:
    """Spawned processes on this machine."""
    context = multiprocessing.get_context("spawn")
    messages: Queue[Message] = context.Queue()
    stop = context.Event()
    executor = ProcessPoolExecutor(processes, context, _begin, (threads_each(processes), messages, stop))
    try:
        yield _Here(messages, {executor.submit(_work, job): job for job in jobs})
    except BrokenProcessPool as error:
        raise RunError("a worker process died, for want of memory perhaps; run the same command again") from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


class _Here:
    """`Workers` of a pool of processes."""

    def __init__(self, messages: "Queue[Message]", left: dict[Future[None], Job]) -> None:
        self._messages = messages
        self._left = left

    def heard(self) -> list[Message]:
        found: list[Message] = []
        with suppress(Empty):
            while True:
                found.append(self._messages.get(timeout=0 if found else _MOMENT))
        return found

    def ended(self) -> list[Job]:
        done, _ = wait(self._left, timeout=0)
        for future in done:
            future.result()
        return [self._left.pop(future) for future in done]


def _begin(threads: int, messages: "Queue[Message]", stop: Event) -> None:
    """Begin a local worker, which ends when its parent does."""
    prepare(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets `stop`
    messages.cancel_join_thread()
    _worker.update(messages=messages, stop=stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job) -> None:
    """One job, in a worker."""

    def tell(done: int, total: int, what: str) -> None:
        if _worker["stop"].is_set():
            raise KeyboardInterrupt
        _worker["messages"].put((job.name, done, total, what))

    do(job, tell)


_worker: dict[str, Any] = {}  # what `_begin` was given, in the worker
