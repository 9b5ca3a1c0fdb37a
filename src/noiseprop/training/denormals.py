"""Training without denormal numbers, which would make it five to ten times slower."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from noiseprop.noise.kernels.openmp import release_openmp_threads

T = TypeVar("T")


def run_without_denormals(work: Callable[[], T], stop: threading.Event, *, threads: int | None = None) -> T:
    """Run `work` with denormal numbers treated as zero on every core; the arithmetic of the caller stays as it is.

    L2 decay drives the weights of pixels that are always black, and their Adam moments, below 1e-38, where processors
    compute slowly. `torch.set_flush_denormal` affects only the calling thread, not the worker threads that OpenMP has
    already started for it. Half the work would stay slow, and the last bits would depend on what ran before. A new
    thread gets new workers, which inherit its setting.

    Args:
        work: function to run.
        stop: set when the caller is interrupted; `work` should then return or raise soon, because the caller waits.
        threads: number of torch threads during the work; None keeps the current number.

    Returns:
        Result of `work`; its exceptions are raised here.
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
        torch.set_num_threads(before)  # part of the setting affects all threads
