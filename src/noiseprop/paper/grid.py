"""Parallel runs, each in its own process, on this machine (spawned, never forked) or on a cluster."""

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
from noiseprop.paper.job import Job
from noiseprop.paper.run_job import is_finished, run_job

ShowProgress = Callable[[str, int, int, str], None]
"""Called with the name of a job, its finished steps, their number, and the name of the step, or DONE at its end."""

DONE = "the whole run"
Message = tuple[str, int, int, str]
_POLL_SECONDS = 0.2


class Workers(Protocol):
    """Processes that run jobs."""

    def receive_messages(self) -> list[Message]:
        """Return the messages since the last call, after a short wait if there are none."""
        ...

    def collect_ended(self) -> list[Job]:
        """Return the jobs that have ended since the last call.

        Raises:
            RunError: a job failed, or its process was lost for good.
        """
        ...


StartWorkers = Callable[[Sequence[Job], int], AbstractContextManager[Workers]]
"""Starts workers on jobs, a number of them per machine like this one; they stop at the end of the block."""


def run_all(jobs: Sequence[Job], *, processes: int, show: ShowProgress, start: StartWorkers | None = None) -> None:
    """Run all unfinished jobs, `processes` at a time.

    Each process computes with cores // processes threads. All stop when this one ends: after Ctrl-C or an error at
    their next step, after a kill at once. Every run can then resume from its last finished epoch or measurement.

    Args:
        jobs: runs under one root.
        processes: number of processes that share the cores of a machine.
        show: receives their progress, and the end of each.
        start: starts the workers; None for processes of this machine. See `noiseprop.paper.ray_cluster.use_ray`.

    Raises:
        InputError: processes < 1.
        RunError: another process uses the same folder, a worker died, or a job failed.
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
                with (start or start_local_workers)(left, min(processes, len(left))) as workers:
                    _follow_workers(left, workers, show)
    except Timeout as error:
        raise RunError(f"{root}: another `noiseprop reproduce` is running there; wait for it or stop it") from error


def count_threads(processes: int) -> int:
    """Return the number of threads of each process when they share the cores of this machine."""
    return max(1, count_cores() // processes)


def prepare_worker(threads: int) -> None:
    """Set up the process of a worker."""
    torch.set_num_threads(threads)
    # known here: networks with noise in residual branches are evaluated on fewer images
    warnings.filterwarnings("ignore", ".*draws cannot share what comes before the noise")


def _follow_workers(jobs: Sequence[Job], workers: Workers, show: ShowProgress) -> None:
    """Forward the messages of the workers until all jobs have ended, or raise the first error."""
    left = {job.name for job in jobs}
    while left:
        for name, done, total, what in workers.receive_messages():
            if name in left:  # a last message may be late
                show(name, done, total, what)
        for job in workers.collect_ended():
            left.remove(job.name)
            show(job.name, 1, 1, DONE)


@contextmanager
def start_local_workers(jobs: Sequence[Job], processes: int) -> Generator[Workers]:
    """Start spawned processes on this machine."""
    context = multiprocessing.get_context("spawn")
    messages: Queue[Message] = context.Queue()
    stop = context.Event()
    executor = ProcessPoolExecutor(processes, context, _begin_worker, (count_threads(processes), messages, stop))
    try:
        yield _LocalWorkers(messages, {executor.submit(_run_in_worker, job): job for job in jobs})
    except BrokenProcessPool as error:
        raise RunError("a worker process died, perhaps out of memory; run the same command again") from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


class _LocalWorkers:
    """`Workers` in a pool of processes."""

    def __init__(self, messages: "Queue[Message]", left: dict[Future[None], Job]) -> None:
        self._messages = messages
        self._left = left

    def receive_messages(self) -> list[Message]:
        found: list[Message] = []
        with suppress(Empty):
            while True:
                found.append(self._messages.get(timeout=0 if found else _POLL_SECONDS))
        return found

    def collect_ended(self) -> list[Job]:
        done, _ = wait(self._left, timeout=0)
        for future in done:
            future.result()
        return [self._left.pop(future) for future in done]


def _begin_worker(threads: int, messages: "Queue[Message]", stop: Event) -> None:
    """Set up a local worker, which ends when its parent does."""
    prepare_worker(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets `stop`
    messages.cancel_join_thread()
    _worker.update(messages=messages, stop=stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(job: Job) -> None:
    """Run one job in a worker."""

    def report_progress(done: int, total: int, what: str) -> None:
        if _worker["stop"].is_set():
            raise KeyboardInterrupt
        _worker["messages"].put((job.name, done, total, what))

    run_job(job, report_progress)


_worker: dict[str, Any] = {}  # arguments of `_begin_worker`, in the worker
