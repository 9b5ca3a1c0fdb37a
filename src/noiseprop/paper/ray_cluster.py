"""Runs as tasks of a Ray cluster, each with a share of a node; the run of a lost node resumes on another.

All nodes must see the folder of the runs, because another node resumes from the checkpoints there: put it on shared
storage. The processes of Ray exchange pickles, so the ports of a cluster belong in trusted networks only; the files of
noiseprop contain none.
"""

import os
import secrets
import signal
import socket
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from noiseprop.errors import NoisepropWarning, RunError
from noiseprop.files.atomic import write_aside
from noiseprop.paper.grid import Message, StartWorkers, Workers, count_threads, prepare_worker
from noiseprop.paper.job import Job
from noiseprop.paper.run_job import run_job

_RETRIES = 3  # of a job with a lost worker or node
_POLL_SECONDS = 0.2
_LOCK_TIMEOUT = 120  # seconds for a lost worker to end, if its node runs on without the cluster
_MARK = ".cluster"  # file by which a node recognises the folder of runs


def use_ray(address: str) -> StartWorkers:
    """Return a starter of workers on a running Ray cluster; pass it to `noiseprop.paper.grid.run_all` as `start`.

    A job is a task with one CPU per thread and as many threads as in a local run with as many `processes`, so its
    results are bit-identical on equal processors. It requests no GPU, because these runs compute on CPUs. A task whose
    worker or node is lost runs again, at most three times, and resumes from its last checkpoint.

    Args:
        address: HOST:PORT of the head of the cluster; "auto" for the cluster of this machine.

    Raises:
        RunError: at the start: Ray is missing, no cluster answers, no node has enough CPUs, or one does not see the
            folder of the runs; later: a job failed, or lost its workers too often.
    """
    return partial(_start_ray_workers, address)


@contextmanager
def _start_ray_workers(address: str, jobs: Sequence[Job], processes: int) -> Generator[Workers]:
    threads = count_threads(processes)
    ray, mark = _connect_to_ray(address, threads), secrets.token_hex(8)
    try:
        write_aside(jobs[0].root / _MARK, lambda aside: aside.write_text(mark))
        queue = _make_queue(ray)
        task, options = ray.remote(_run_task), {"num_cpus": threads, "max_retries": _RETRIES}
        left = {
            task.options(name=job.name, **options).remote(_resolve_folders(job), threads, mark, queue): job
            for job in jobs
        }
        try:
            yield _RayWorkers(ray, queue, left)
        finally:
            for ref in left:
                ray.cancel(ref, force=True)
    finally:
        ray.shutdown()


class _RayWorkers:
    """`Workers` as tasks of Ray."""

    def __init__(self, ray: Any, queue: Any, left: dict[Any, Job]) -> None:
        self._ray = ray
        self._queue = queue
        self._left = left

    def receive_messages(self) -> list[Message]:
        self._ray.wait(list(self._left), timeout=_POLL_SECONDS)
        return self._queue.get_nowait_batch(self._queue.size())

    def collect_ended(self) -> list[Job]:
        done, _ = self._ray.wait(list(self._left), num_returns=len(self._left), timeout=0)
        for ref in done:
            for sentence in self._get_warnings(ref):
                warnings.warn(sentence, NoisepropWarning, stacklevel=1)
        return [self._left.pop(ref) for ref in done]

    def _get_warnings(self, ref: Any) -> list[str]:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise RunError(
                f"{self._left[ref].name} has lost its worker {_RETRIES + 1} times ({reason}); check the memory and "
                "nodes of the cluster, and run the same command again"
            ) from error


def _connect_to_ray(address: str, threads: int) -> Any:
    """Return Ray, connected to a cluster with room for a job."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports its use
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise RunError("--ray needs Ray, which is missing: pip install noiseprop[ray]") from error
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"no Ray cluster answers at {address} ({reason}); start one with `ray start`") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init takes it
    most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if most < threads:
        ray.shutdown()
        raise RunError(f"a job takes {threads} CPUs, and no node of the cluster has more than {most:g}; raise --jobs")
    return ray


def _make_queue(ray: Any) -> Any:
    """Return the queue for messages of workers, on the node of this process, because others may be lost."""
    strategies = import_module("ray.util.scheduling_strategies")
    node = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0, "scheduling_strategy": node})


def _resolve_folders(job: Job) -> Job:
    """Return the job with absolute folders, which every process of every node can use."""
    data_dir = job.data_dir or os.environ.get("NOISEPROP_DATA")
    return replace(job, root=job.root.resolve(), data_dir=Path(data_dir).resolve() if data_dir else None)


def _run_task(job: Job, threads: int, mark: str, queue: Any) -> list[str]:
    """Run one job in a worker on some node; return the texts of its warnings."""
    _check_shared(job.root, mark)
    prepare_worker(threads)
    lock = job.folder.with_name(f".{job.folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings(record=True) as caught, FileLock(lock, timeout=_LOCK_TIMEOUT):
            run_job(job, lambda done, total, what: queue.put((job.name, done, total, what)))
    except Timeout as error:
        raise RunError(f"{job.folder}: a worker that the cluster has lost is still running there; stop it") from error
    return [str(warning.message) for warning in caught if issubclass(warning.category, NoisepropWarning)]


def _check_shared(root: Path, mark: str) -> None:
    """Check that a node sees the folder of runs of the driver."""
    try:
        same = (root / _MARK).read_text() == mark
    except OSError:
        same = False
    if not same:
        raise RunError(f"{socket.gethostname()} does not see this {root}; give --runs a folder that all nodes share")
