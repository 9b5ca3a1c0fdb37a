"""Fuzz the readers with atheris: `python -m tests.fuzz --executions 1000000 [reader ...]`; writes results/fuzz.json.

One reader after the other, each in a process of its own that dies of what no reader may do: let an error through other
than a NoisepropError, take more than `SECONDS` for an input, or more memory than `MEMORY` beyond what it began with.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "fuzz.json"
MEMORY = 1024  # MB
SECONDS = 10
INSTRUMENTED = [  # for coverage; numba's compiled functions could not be
    *("noiseprop.reading", "noiseprop.data", "noiseprop.corruptions.released", "noiseprop.noise.files"),
    *("noiseprop.training.checkpoint", "noiseprop.training.run_folder", "noiseprop.training.metrics"),
    *("noiseprop.training.recipes", "noiseprop.evaluation.storage", "noiseprop.evaluation.partial"),
    *("noiseprop.paper.form", "noiseprop.paper.results", "noiseprop.paper.runs", "noiseprop.paper.figure4"),
]


def work(name: str, flags: list[str]) -> None:
    """Fuzz one reader in this process; ends it."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.readers import READERS, accepts, scratch

    reader = READERS[name]
    for seed in reader.seeds():
        accepts(reader, seed)
    allowed = {path.name for path in scratch().iterdir()}

    def once(data: bytes) -> None:
        accepts(reader, data)
        assert once.count % 1000 or {path.name for path in scratch().iterdir()} <= allowed, "a file was left behind"
        once.count += 1

    once.count = 0

    def mutator(data: bytes, size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, size)
        return reader.damage(data, rng, lambda inner: atheris.Mutate(inner, max(size, len(inner))))[:size]

    status = Path("/proc/self/status").read_text()
    mapped, resident = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("VmSize", "VmRSS"))
    resource.setrlimit(resource.RLIMIT_AS, ((mapped << 10) + (MEMORY << 20),) * 2)
    print(f"stat::begun_rss_mb: {resident >> 10}", file=sys.stderr, flush=True)
    atheris.Setup([sys.argv[0], *flags], once, custom_mutator=mutator)
    atheris.Fuzz()


def fuzz(name: str, executions: int, minutes: float, seed: int) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, for so long at most; what came of it."""
    from tests.fuzz.found import FOUND
    from tests.fuzz.readers import READERS

    reader = READERS[name]
    seeds = [*reader.seeds(), *(found.data for found in FOUND if found.reader == name)]
    crashes = ROOT / "build" / "fuzz"
    crashes.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, data in enumerate(seeds):
            (corpus / str(number)).write_bytes(data)
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in reader.words))
        begun = resource_mb(resource.getrusage(resource.RUSAGE_SELF))
        flags = [
            f"-runs={executions}",
            f"-max_total_time={minutes * 60:.0f}",
            f"-seed={seed}",
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={begun + 2 * MEMORY}",
        ]
        flags += [f"-max_len={max(map(len, seeds)) + 256}", "-print_final_stats=1"]
        flags += [f"-dict={words}"] * bool(reader.words) + [f"-artifact_prefix={crashes}/{name}-", str(corpus)]
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--work", name, *flags],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        seconds = time.perf_counter() - start
    stats = {key: int(value) for key, value in re.findall(r"^stat::(\w+):\s+(\d+)", ended.stderr, re.MULTILINE)}
    covered = re.findall(r"\bcov: (\d+)", ended.stderr)
    if ended.returncode:
        print(ended.stderr[-4000:], file=sys.stderr)
    return {
        "reader": name,
        "reads": reader.reads,
        "executions": stats.get("number_of_executed_units", 0),
        "crashes": int(ended.returncode != 0),
        "seconds": round(seconds),
        "memory_mb": stats.get("peak_rss_mb", 0) - stats.get("begun_rss_mb", 0),
        "branches": int(covered[-1]) if covered else 0,
        "found": [found.says for found in FOUND if found.reader == name],
    }


def resource_mb(usage: resource.struct_rusage) -> int:
    """The most memory that a process has had."""
    return usage.ru_maxrss >> 10


def keep(run: dict[str, Any], executions: int) -> None:
    """Put a reader's run into the record, in place of an older one."""
    from tests.fuzz.readers import READERS

    kept = json.loads(RECORD.read_text())["readers"] if RECORD.exists() else []
    by_name = {one["reader"]: one for one in kept} | {run["reader"]: run}
    record = {
        "asked": executions,
        "limits": {"memory_mb": MEMORY, "seconds": SECONDS},
        "made_with": {name: version(name) for name in ("atheris", "numpy", "pillow", "safetensors", "torch")},
        "readers": [by_name[name] for name in READERS if name in by_name],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """Fuzz the readers that are named, or all; 1 where one let something through."""
    from tests.fuzz.readers import READERS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "readers", nargs="*", metavar="reader", help=f"of {', '.join(READERS)}; all where none is named"
    )
    parser.add_argument("--executions", type=int, default=100_000, help="of each reader")
    parser.add_argument("--minutes", type=float, default=0, help="for each reader at most; 0: as long as it takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--try", action="store_true", dest="tried", help="leave results/fuzz.json as it is")
    options = parser.parse_args()
    if unknown := set(options.readers) - set(READERS):
        parser.error(f"unknown readers {', '.join(sorted(unknown))}; choose of {', '.join(READERS)}")
    failed = False
    for name in options.readers or READERS:
        run = fuzz(name, options.executions, options.minutes, options.seed)
        speed = run["executions"] / max(run["seconds"], 1)
        told = f"{run['executions']:,} executions, {speed:,.0f} a second, {run['crashes']} crashes"
        print(f"{name}: {told}, {run['memory_mb']} MB more than at the start", flush=True)
        failed |= bool(run["crashes"])
        if not options.tried:
            keep(run, options.executions)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3:])
    sys.exit(main())
