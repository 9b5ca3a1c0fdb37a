"""Many runs on one machine: spawned processes that each take a share of the cores."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Empty
from typing import Any

import torch
from filelock import FileLock, Timeout

from noiseprop.errors import InputError, RunError
from noiseprop.paper.reproduction import Job, do, is_finished

Show = Callable[[str, int, int, str], None]
"""Called with a job's name, the steps done of what it does, their number, and what that is, or DONE at its end."""

DONE = "the whole run"
_Message = tuple[str, int, int, str]


def run_all(jobs: Sequence[Job], *, processes: int, show: Show) -> None:
    """Do all jobs, `processes` at a time; what an earlier call has finished is not done again.

    The processes are spawned, never forked, and compute with cores // processes threads each. They stop when this one
    does, however it ends: Ctrl-C and errors let each come to its next step, a kill ends them at once. Then every run is
    where its last finished epoch, or its evaluation, left it.

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
                _run(left, min(processes, len(left)), show)
    except Timeout as error:
        raise RunError(f"{root}: another `noiseprop reproduce` is at work there; wait for it or stop it") from error


def _run(jobs: Sequence[Job], processes: int, show: Show) -> None:
    context = multiprocessing.get_context("spawn")
    messages: Queue[_Message] = context.Queue()
    stop = context.Event()
    executor = ProcessPoolExecutor(processes, context, _prepare, (_cores() // processes, messages, stop))
    try:
        waiting = [executor.submit(_work, job) for job in jobs]
        _follow(waiting, messages, show)
    except BrokenProcessPool as error:
        raise RunError("a worker process died, for want of memory perhaps; run the same command again") from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _follow(waiting: Sequence[Future[None]], messages: "Queue[_Message]", show: Show) -> None:
    """Pass on what the workers tell until all is done, or raise the first error."""
    left: set[Future[None]] = set(waiting)
    while left:
        try:
            while True:
                show(*messages.get(timeout=0.2))
        except Empty:
            pass
        done, left = wait(left, timeout=0, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


def _prepare(threads: int, messages: "Queue[_Message]", stop: Event) -> None:
    """Begin a worker: its threads, and its end when its parent's comes."""
    torch.set_num_threads(max(1, threads))
    # that draws cost full passes with noise in residual branches is known here: such networks see fewer images
    warnings.filterwarnings("ignore", ".*draws cannot share what comes before the noise")
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
    tell(1, 1, DONE)


_worker: dict[str, Any] = {}  # what `_prepare` was given, in the worker


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
