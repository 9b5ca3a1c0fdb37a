"""Training without denormal numbers, which would make it five to ten times slower."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from noiseprop.noise.kernels.openmp import release_openmp_threads

T = TypeVar("T")


def flushing_denormals(work: Callable[[], T], stop: threading.Event, *, threads: int | None = None) -> T:
    """Run `work` where denormal numbers count as zero, on every core, and leave the caller's arithmetic alone.

    L2 decay drives the weights of pixels that are always black, and with them Adam's moments, below 1e-38, where the
    processor computes slowly. `torch.set_flush_denormal` reaches the calling thread alone, not the worker threads that
    OpenMP has already started for it, so that half the work would stay slow and the last bits would depend on what ran
    before. A new thread gets workers of its own, and they inherit its setting.

    Args:
        work: what to run.
        stop: set when the caller is interrupted; `work` should then return or raise soon, for it is waited for.
        threads: how many torch computes with meanwhile; as many as now if None.

    Returns:
        What `work` returns; its exceptions are raised here.
    """
    before = torch.get_num_threads()

    def prepare() -> None:
        torch.set_flush_denormal(True)
        torch.set_num_threads(threads or before)

    release_openmp_threads()
    try:
        with ThreadPoolExecutor(1, "noiseprop-training", prepare) as executor:
            future = executor.submit(contextvars.copy_context().run, work)
            try:
                return future.result()
            finally:
                stop.set()
    finally:
        torch.set_num_threads(before)  # a part of the setting reaches all threads
