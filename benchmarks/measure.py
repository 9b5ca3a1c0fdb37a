"""What the benchmarks share: paired timing, what they were measured on, and where their figures are kept."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from noiseprop.training.timing import time_in_turn as time_in_turn
from noiseprop.training.timing import compare_times as compare_times

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split(":")[1].split() for line in _cpuinfo() if line.startswith("flags")), [])
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "numba", "noiseprop")},
        "commit": _commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _commit() -> str:
    """The commit, and whether the code has changed since; results made meanwhile do not count."""
    name, changed = (
        subprocess.run(["git", *command.split()], capture_output=True, text=True, check=False)
        for command in ("rev-parse --short HEAD", "diff --quiet HEAD -- src benchmarks")
    )
    return (name.stdout.strip() or "unknown") + ("-dirty" if changed.returncode else "")


def write(name: str, compared_with: str, figures: Any) -> None:
    """Keep the figures as results/benchmarks/<name>.json, written aside and renamed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    aside = path.with_suffix(".tmp")
    content = {"compared_with": compared_with, "machine": machine(), "figures": figures}
    aside.write_text(json.dumps(content, indent=1) + "\n")
    aside.replace(path)
    print(f"written to {path.relative_to(RESULTS.parent.parent)}")
