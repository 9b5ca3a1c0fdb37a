"""Common parts of the benchmarks: paired timing, the description of the machine, and the result files."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from noiseprop.training.timing import compare_times as compare_times
from noiseprop.training.timing import time_in_turn as time_in_turn

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks"


def describe_machine() -> dict[str, Any]:
    """Return the machine and the versions that the figures belong to."""
    cpu = next(
        (line.split(":")[1].strip() for line in _read_cpuinfo() if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split(":")[1].split() for line in _read_cpuinfo() if line.startswith("flags")), [])
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "numba", "noiseprop")},
        "commit": _describe_commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _read_cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _describe_commit() -> str:
    """Return the commit, marked "-dirty" if the code differs from it; changed result files do not count."""
    name, changed = (
        subprocess.run(["git", *command.split()], capture_output=True, text=True, check=False)
        for command in ("rev-parse --short HEAD", "diff --quiet HEAD -- src benchmarks")
    )
    return (name.stdout.strip() or "unknown") + ("-dirty" if changed.returncode else "")


def write_figures(name: str, compared_with: str, figures: Any) -> None:
    """Write the figures to results/benchmarks/<name>.json, through a temporary file and a rename."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    content = {"compared_with": compared_with, "machine": describe_machine(), "figures": figures}
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
    print(f"saved in {path.relative_to(RESULTS.parent.parent)}")
