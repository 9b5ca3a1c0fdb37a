"""Run one compiled kernel on torch's own threads.

numba's threading layers do not fit: OpenMP's crashes after a fork, workqueue's with two calling threads, and both would
compete with torch's threads for the cores. Therefore the kernels are plain C functions that take their tasks from a
shared counter, and torch's own team calls them, by `GOMP_parallel` of the OpenMP library that torch has loaded. Where
torch has none, Python threads call the same function, which releases the GIL. A forked child runs serially, since no
thread of its parent survives in it.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

KernelFunction = Callable[[int], None]

SERIAL_BELOW = 20_000  # elements; under this a team costs more than it saves
_forked = False


def _mark_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_fork)


@cache
def _load_libtorch() -> ctypes.CDLL | None:
    """Return torch's library of CPU operators, which also resolves the symbols of its OpenMP library."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return None


@cache
def find_gomp_parallel() -> Callable[[int, int, int, int], None] | None:
    """Return GOMP_parallel(function, data, threads, flags) of the OpenMP library that torch uses, if there is one."""
    parallel = getattr(_load_libtorch(), "GOMP_parallel", None)
    if parallel is None:
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def release_openmp_threads() -> None:
    """Release the calling thread's OpenMP team; its next parallel operation starts a new one.

    Call this where the team will be idle while another thread computes. With more OpenMP threads than cores, idle ones
    included, GNU's library puts threads to sleep at every barrier instead of spinning, and waking them takes longer
    than an operation of a small network.
    """
    pause = getattr(_load_libtorch(), "omp_pause_resource_all", None)
    if pause is not None and not _forked:  # a forked child would wait for threads of its parent
        pause(1)  # omp_pause_soft


@cache
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noiseprop")


def run_on_torch_threads(address: int, function: KernelFunction, arguments: int, elements: int) -> None:
    """Call a kernel on one thread, or on all of torch's threads if there are enough elements.

    Args:
        address: the kernel's machine address.
        function: the same kernel as a ctypes function that releases the GIL.
        arguments: address of its arguments; the threads share the tasks through them.
        elements: number of elements it processes.
    """
    team = 1 if elements < SERIAL_BELOW or _forked else torch.get_num_threads()
    if team == 1:
        function(arguments)
    elif (parallel := find_gomp_parallel()) is not None:
        parallel(address, arguments, team, 0)
    else:
        waiting = [_thread_pool(team - 1).submit(function, arguments) for _ in range(team - 1)]
        function(arguments)
        for future in waiting:
            future.result()
