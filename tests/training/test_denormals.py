import threading

import pytest
import torch

from noiseprop.training.denormals import flushing_denormals

MANY = 4_000_000  # elements, so that every worker thread gets some


def halves_of_denormals() -> int:
    return int((torch.full((MANY,), 1e-40) * 0.5 != 0).sum())


def test_every_worker_flushes_and_the_caller_does_not():
    before = halves_of_denormals()  # starts this thread's workers
    assert before == MANY
    assert flushing_denormals(halves_of_denormals, threading.Event()) == 0
    assert halves_of_denormals() == MANY


def test_threads_and_context_go_along():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert flushing_denormals(torch.get_num_threads, threading.Event()) == 1
    finally:
        torch.set_num_threads(threads)


def test_an_error_comes_back_and_the_event_is_set():
    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        flushing_denormals(lambda: 1 // 0, stop)
    assert stop.is_set()
