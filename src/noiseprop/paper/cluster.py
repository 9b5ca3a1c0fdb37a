"""A grid's runs as tasks of a Ray cluster, each with its share of a node, begun again elsewhere when that is lost.

All nodes have to see the folder of the runs, for there lie the checkpoints from which another node goes on: put it on
storage that they share. Ray's processes send each other pickles, so the ports of a cluster are for trusted networks
alone; what noiseprop itself writes and reads stays free of them.
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
from noiseprop.paper.grid import Message, Start, Workers, prepare, threads_each
from noiseprop.paper.reproduction import Job, do

_RETRIES = 3  # of a job whose worker or node is lost
_MOMENT = 0.2  # seconds
_PATIENCE = 120  # seconds for a lost worker to end, should its node live on without the cluster
_MARK = ".cluster"  # a file in the folder of runs, by which a node knows it


def on_ray(address: str) -> Start:
    """Workers of a running Ray cluster; give it to `noiseprop.paper.grid.run_all` as `start`.

    A job is a task of as many CPUs as it has threads, which are those of a local run with as many `processes`, so that
    its results are the same to the bit on equal processors. No GPU is asked for, since these runs compute on CPUs. A
    task whose worker or node is lost runs again, three times at most, and goes on from its last checkpoint.

    Args:
        address: of the cluster's head, HOST:PORT; "auto" for a cluster that this machine belongs to.

    Raises:
        RunError: when started: Ray is missing or no cluster is there, no node has CPUs enough, or one does not see the
            folder of the runs; a job failed, or lost its workers too often.
    """
    return partial(_on_ray, address)


@contextmanager
def _on_ray(address: str, jobs: Sequence[Job], processes: int) -> Generator[Workers]:
    threads = threads_each(processes)
    ray, mark = _joined(address, threads), secrets.token_hex(8)
    try:
        write_aside(jobs[0].root / _MARK, lambda aside: aside.write_text(mark))
        queue = _queue(ray)
        task, options = ray.remote(_task), {"num_cpus": threads, "max_retries": _RETRIES}
        left = {
            task.options(name=job.name, **options).remote(_everywhere(job), threads, mark, queue): job for job in jobs
        }
        try:
            yield _OnRay(ray, queue, left)
        finally:
            for ref in left:
                ray.cancel(ref, force=True)
    finally:
        ray.shutdown()


class _OnRay:
    """`Workers` of Ray's tasks."""

    def __init__(self, ray: Any, queue: Any, left: dict[Any, Job]) -> None:
        self._ray = ray
        self._queue = queue
        self._left = left

    def heard(self) -> list[Message]:
        self._ray.wait(list(self._left), timeout=_MOMENT)
        return self._queue.get_nowait_batch(self._queue.size())

    def ended(self) -> list[Job]:
        done, _ = self._ray.wait(list(self._left), num_returns=len(self._left), timeout=0)
        for ref in done:
            for sentence in self._result(ref):
                warnings.warn(sentence, NoisepropWarning, stacklevel=1)
        return [self._left.pop(ref) for ref in done]

    def _result(self, ref: Any) -> list[str]:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise RunError(
                f"{self._left[ref].name} has lost its worker {_RETRIES + 1} times ({reason}); see to the cluster's "
                "memory and nodes, and run the same command again"
            ) from error


def _joined(address: str, threads: int) -> Any:
    """Ray, connected to a cluster with room for a job."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
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


def _queue(ray: Any) -> Any:
    """What workers put their messages into; it lives on this process's node, as the others may be lost."""
    strategies = import_module("ray.util.scheduling_strategies")
    node = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0, "scheduling_strategy": node})


def _everywhere(job: Job) -> Job:
    """The job with folders that mean the same in every process of every node."""
    data_dir = job.data_dir or os.environ.get("NOISEPROP_DATA")
    return replace(job, root=job.root.resolve(), data_dir=Path(data_dir).resolve() if data_dir else None)


def _task(job: Job, threads: int, mark: str, queue: Any) -> list[str]:
    """One job, in a worker on some node; the sentences of its warnings."""
    _check_shared(job.root, mark)
    prepare(threads)
    lock = job.folder.with_name(f".{job.folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings(record=True) as told, FileLock(lock, timeout=_PATIENCE):
            do(job, lambda done, total, what: queue.put((job.name, done, total, what)))
    except Timeout as error:
        raise RunError(f"{job.folder}: a worker that the cluster has lost is still at work there; stop it") from error
    return [str(warning.message) for warning in told if issubclass(warning.category, NoisepropWarning)]


def _check_shared(root: Path, mark: str) -> None:
    """See whether a node sees the driver's folder of runs."""
    try:
        same = (root / _MARK).read_text() == mark
    except OSError:
        same = False
    if not same:
        raise RunError(f"{socket.gethostname()} does not see this {root}; give --runs a folder that all nodes share")
