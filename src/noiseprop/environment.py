"""Software and hardware behind a number: versions, processor, cores, commit, and devices that torch can use."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from noiseprop.errors import InputError

_Count = Annotated[int, msgspec.Meta(ge=1, le=10**6)]


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Software and hardware that a number was made with.

    Attributes:
        noiseprop: version of noiseprop, as for `python`, `torch` and `numba`.
        commit: commit of a checkout, with a + if its source has changed since; None for an installed package.
        processor: its name and its vector and matrix units.
        cores: cores of the machine; None if unknown.
        threads: threads of torch.
        processes: processes that worked together.
    """

    noiseprop: str
    commit: str | None
    python: str
    torch: str
    numba: str
    processor: str
    cores: _Count | None
    threads: _Count
    processes: _Count


def describe_environment(*, processes: int = 1) -> Environment:
    """Return versions, processor, numbers of cores, threads and processes, and the commit of a checkout.

    Examples:
        >>> describe_environment(processes=2).processes
        2
    """
    return Environment(
        noiseprop=version("noiseprop"),
        commit=_find_commit(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        numba=version("numba"),
        processor=_find_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        processes=processes,
    )


def describe_machine() -> dict[str, str]:
    """Return the abilities of this machine in words: versions, cores, vector and matrix units, GPUs."""
    here, units = describe_environment(), _list_units()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    gpus += ["Apple GPU"] if torch.backends.mps.is_available() else []
    return {
        "noiseprop": here.noiseprop,
        "commit": here.commit or "none: installed, not a checkout",
        "python": here.python,
        "torch": here.torch,
        "numba": here.numba,
        "processor": here.processor,
        "AVX-512": "yes" if "avx512f" in units else "no",
        "AMX": "yes" if "amx_bf16" in units else "no",
        "bfloat16": ", ".join(unit for unit in units if "bf16" in unit) or "no unit for it, so bf16 is slow",
        "cores": str(count_cores()),
        "threads": str(here.threads),
        "GPU": ", ".join(gpus) or "none that torch can use",
    }


def choose_device(name: str) -> torch.device:
    """Return a device by torch's name: `cpu`, or `cuda`, `cuda:1` and the like if it exists here.

    Raises:
        InputError: torch does not know the device or cannot use it here.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    known = {"cpu": 1} | ({} if found is None else {found.type: torch.accelerator.device_count()})
    try:
        asked = torch.device(name)
    except RuntimeError:
        asked = None
    if asked is None or (asked.index or 0) >= known.get(asked.type, 0):
        has = ", ".join(kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in known.items())
        raise InputError(f"{name!r} is not a device that torch can use here; choose one of {has}")
    return asked


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _find_processor() -> str:
    """Return the processor's name and its wide units, on which speed depends most."""
    name = next((line.partition(":")[2].strip() for line in _read_cpuinfo() if line.startswith("model name")), "")
    return " ".join([name or platform.processor() or platform.machine(), *_list_units()])


@cache
def _list_units() -> list[str]:
    """Return the processor's wide vector and matrix units, by Linux's names."""
    flags = next((line.split() for line in _read_cpuinfo() if line.startswith("flags")), [])
    return [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]


@cache
def _read_cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


@cache
def _find_commit() -> str | None:
    """Return the commit of the checkout of this file, with a + if its source has changed since; None without one."""
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
