"""What a number was made with: versions, processor, commit."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch


def made_with() -> dict[str, str | int | None]:
    """Versions, processor, number of threads, and the commit where noiseprop runs from a checkout.

    >>> sorted(made_with())
    ['commit', 'cores', 'noiseprop', 'processor', 'python', 'threads', 'torch']
    """
    return {
        "noiseprop": version("noiseprop"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


@cache
def _processor() -> str:
    """The processor's name and its widest vectors, on which speed depends most."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return " ".join([name or platform.processor() or platform.machine(), *units])


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
