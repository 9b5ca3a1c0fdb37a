"""Run one compiled kernel on torch's own threads.

numba's threading layers cannot be used here: OpenMP's dies after a fork, workqueue's with two calling threads, and both
would compete with torch's threads for the cores. So the kernels are plain C functions that take their tasks from a
shared counter, and the team that calls them is torch's own: `GOMP_parallel` of the OpenMP library that torch has
loaded. Where torch has none, Python threads call the same function (it holds no GIL). A forked child runs serially,
since no thread of its parent survives in it.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

Kernel = Callable[[int], None]

SERIAL_BELOW = 20_000  # elements; under this a team costs more than it saves
_forked = False


def _mark_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_fork)


@cache
def _library() -> ctypes.CDLL | None:
    """The library of torch's operators on the CPU, in which the OpenMP library that they use is found, too."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return None


@cache
def openmp() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel(function, data, threads, flags) of the OpenMP library that torch itself uses, if there is one."""
    parallel = getattr(_library(), "GOMP_parallel", None)
    if parallel is None:
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def dismiss() -> None:
    """Let the calling thread's OpenMP team go; it gets a new one with its next parallel work.

    For one whose team will be idle while another thread computes: where there are more OpenMP threads than cores, and
    idle ones count, GNU's library puts a thread to sleep at every barrier instead of letting it wait awake, and waking
    it up takes longer than a small network's operation.
    """
    pause = getattr(_library(), "omp_pause_resource_all", None)
    if pause is not None and not _forked:  # a forked child would wait for threads of its parent
        pause(1)  # omp_pause_soft


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noiseprop")


def run(address: int, function: Kernel, arguments: int, elements: int) -> None:
    """Call a kernel on as many of torch's threads as `elements` is worth.

    Args:
        address: the kernel's machine address.
        function: the same kernel as a ctypes function that releases the GIL.
        arguments: address of its arguments; the kernel's threads share out the tasks among themselves.
        elements: how many elements it works on.
    """
    team = 1 if elements < SERIAL_BELOW or _forked else torch.get_num_threads()
    if team == 1:
        function(arguments)
    elif (parallel := openmp()) is not None:
        parallel(address, arguments, team, 0)
    else:
        waiting = [_pool(team - 1).submit(function, arguments) for _ in range(team - 1)]
        function(arguments)
        for future in waiting:
            future.result()
