"""What a number was made with: versions, processor, commit; and what a run that comes from elsewhere goes on with."""

import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from noiseprop.distributed import world
from noiseprop.errors import InputError, NoisepropWarning
from noiseprop.noise.kernels.dispatch import select_backend
from noiseprop.noise.kernels.openmp import find_gomp_parallel


def made_with() -> dict[str, str | int | None]:
    """Versions, processor, numbers of threads and of processes, and the commit where noiseprop runs from a checkout.

    Examples:
        >>> sorted(made_with())
        ['commit', 'cores', 'noiseprop', 'numba', 'processes', 'processor', 'python', 'threads', 'torch']
    """
    return {
        "noiseprop": version("noiseprop"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": version("numba"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world().size,
    }


def abilities() -> dict[str, str | int]:
    """What this machine can do for noiseprop, in words: versions, cores, vector and matrix units, GPU, kernels."""
    made, units = made_with(), _units()
    fused = select_backend(torch.zeros(1)) == "numba"
    team = "on torch's own threads" if find_gomp_parallel() is not None else "on Python's threads"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    gpus += ["Apple GPU"] if torch.backends.mps.is_available() else []
    return {
        "noiseprop": str(made["noiseprop"]),
        "commit": made["commit"] or "none: installed, not a checkout",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": str(made["numba"]),
        "processor": str(made["processor"]),
        "AVX-512": "yes" if "avx512f" in units else "no",
        "AMX": "yes" if "amx_bf16" in units else "no",
        "bfloat16": ", ".join(unit for unit in units if "bf16" in unit) or "no unit for it, so bf16 is slow",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "GPU": ", ".join(gpus) or "none that torch can use",
        "noise kernel": f"fused, compiled by numba, {team}" if fused else "plain torch, slower: numba is missing",
    }


def threads_to_go_on_with(run_dir: Path, made: object) -> int:
    """The number of threads for the rest of a run: what it began with, for the bits depend on it, if there are cores.

    Where that cannot be, or torch, numba, noiseprop, the processor or the number of processes is another, the run goes
    on with other bits than it would have had; that is a `NoisepropWarning`, for runs are moved between machines.

    Args:
        run_dir: the run's folder, for the warning.
        made: what `made_with` said when it began, as its config.json has it.
    """
    here, begun = made_with(), cast("Mapping[str, Any]", made) if isinstance(made, Mapping) else {}
    told = begun.get("threads")
    threads = told if isinstance(told, int) and told > 0 else torch.get_num_threads()
    changes = [
        f"{key} {begun[key]} (here {here[key]})"
        for key in ("torch", "numba", "noiseprop", "processor")
        if isinstance(begun.get(key), str) and begun[key] != here[key]
    ]
    if threads > cores() and threads != torch.get_num_threads():
        changes.append(f"{threads} threads (cores here: {cores()})")
        threads = torch.get_num_threads()
    told = begun.get("processes")
    processes = told if isinstance(told, int) else 1
    if processes != here["processes"]:
        changes.append(f"{processes} processes (here {here['processes']})")
    if changes and world().first:
        sentence = f"{run_dir} goes on, but not with the bits it would have had: it began with {', '.join(changes)}"
        warnings.warn(sentence, NoisepropWarning, stacklevel=4)
    return threads


def device(name: str) -> torch.device:
    """A device by torch's name: `cpu`, or `cuda`, `cuda:1` and the like where there is one.

    Raises:
        InputError: torch knows no such device, or cannot use it here.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    known = {"cpu": 1} | ({} if found is None else {found.type: torch.accelerator.device_count()})
    try:
        asked = torch.device(name)
    except RuntimeError:
        asked = None
    if asked is None or (asked.index or 0) >= known.get(asked.type, 0):
        has = ", ".join(kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in known.items())
        raise InputError(f"{name!r} is no device that torch can use here; it has {has}")
    return asked


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _processor() -> str:
    """The processor's name and its widest vectors, on which speed depends most."""
    name = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return " ".join([name or platform.processor() or platform.machine(), *_units()])


@cache
def _units() -> list[str]:
    """The processor's wide vector and matrix units, by Linux's names."""
    flags = next((line.split() for line in _cpuinfo() if line.startswith("flags")), [])
    return [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]


@cache
def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


@cache
def _commit() -> str | None:
    """The commit of the checkout that this file lies in, with a + if its source has changed since; None elsewhere."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        if subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True).returncode:  # noqa: S603
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()  # noqa: S603
        source = str(here.parent)
        changed = subprocess.run([*git, "status", "--porcelain", source], capture_output=True).stdout  # noqa: S603
    except OSError:
        return None
    return head + ("+" if changed else "")
