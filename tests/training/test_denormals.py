import os
import subprocess
import sys
import threading

import pytest
import torch

from noiseprop.training.denormals import run_without_denormals

MANY = 4_000_000  # elements, so that every worker thread gets some


def halves_of_denormals() -> int:
    return int((torch.full((MANY,), 1e-40) * 0.5 != 0).sum())


def test_every_worker_flushes_and_the_caller_does_not():
    before = halves_of_denormals()  # starts this thread's workers
    assert before == MANY
    assert run_without_denormals(halves_of_denormals, threading.Event()) == 0
    assert halves_of_denormals() == MANY


def test_threads_and_context_go_along():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run_without_denormals(torch.get_num_threads, threading.Event()) == 1
    finally:
        torch.set_num_threads(threads)


def test_an_error_comes_back_and_the_event_is_set():
    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        run_without_denormals(lambda: 1 // 0, stop)
    assert stop.is_set()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's threads in /proc")
def test_the_caller_s_workers_are_let_go_meanwhile():
    """With more OpenMP threads than cores, idle ones too, each of them would sleep at every barrier."""
    script = """
import os, threading, time, torch
from noiseprop.training.denormals import run_without_denormals
torch.set_num_threads(3)
threads = lambda: len(os.listdir("/proc/self/task"))
work = lambda: float(torch.ones(4_000_000).mul(2).sum())
alone = threads()
work()
team = threads() - alone
assert team == 2, team

def training():
    work()
    end = time.monotonic() + 20
    while threads() > alone + 1 + team and time.monotonic() < end:
        time.sleep(0.01)  # a thread that was let go takes a moment to end
    return threads()

assert run_without_denormals(training, threading.Event()) == alone + 1 + team
assert torch.get_num_threads() == 3
assert work() == 8_000_000
assert threads() >= alone + team
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_does_not_wait_for_workers_of_its_parent():
    script = """
import os, sys, torch
from noiseprop.noise.kernels.openmp import release_openmp_threads
torch.set_num_threads(3)
torch.ones(4_000_000).mul(2)
pid = os.fork()
if pid == 0:
    release_openmp_threads()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
