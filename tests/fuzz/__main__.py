"""Fuzz the readers with atheris: `python -m tests.fuzz --executions 1000000 [reader ...]`; writes results/fuzz.json.

Each reader runs in a separate process, which fails if the reader raises an error other than a NoisepropError, leaves a
file behind, takes more than `SECONDS` for an input, or allocates more than `MEMORY`.
"""

import argparse
import json
import os
import re
import resource
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the readers' processes are forked

import atheris

COMPILED = ["noiseprop.noise.kernels.numba_noise", "noiseprop.noise.kernels.numba_adam"]

with atheris.instrument_imports(include=["noiseprop"], exclude=COMPILED):  # numba could not compile instrumented code
    from tests.fuzz.found import FOUND
    from tests.fuzz.readers import READERS, Reader, accepts, scratch

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "fuzz.json"
CRASHES = ROOT / "build" / "fuzz"
MEMORY = 1024  # MB
SECONDS = 30  # by the clock, on a machine that others use too


def fuzz(reader: Reader, executions: int, minutes: float, seed: int) -> dict[str, Any]:
    """Fuzz one reader in a separate process, for at most `minutes` unless 0, and return the figures."""
    seeds = [*reader.seeds(), *(found.data for found in FOUND if found.reader == reader.name)]
    for data in seeds:
        accepts(reader, data)
    CRASHES.mkdir(parents=True, exist_ok=True)
    folder = scratch() / "fuzz"
    corpus, words, said = folder / "corpus", folder / "words", folder / "said"
    corpus.mkdir(parents=True)
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in reader.words))
    flags = [f"-runs={executions}", f"-max_total_time={minutes * 60:.0f}", f"-seed={seed}", f"-timeout={SECONDS}"]
    flags += [f"-max_len={max(map(len, seeds)) + 256}", "-rss_limit_mb=0", "-print_final_stats=1"]
    flags += [f"-dict={words}"] * bool(reader.words) + [f"-artifact_prefix={CRASHES}/{reader.name}-", str(corpus)]
    start = time.perf_counter()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            work(reader, flags, said)
        finally:
            os._exit(70)  # without the exit handlers of the parent
    _, status, usage = os.wait4(child, 0)
    output = said.read_text(errors="replace")
    shutil.rmtree(folder)
    if status:
        print(output[-4000:], file=sys.stderr)
    begun = int(re.search(r"begun with (\d+) MB", output)[1])
    executed = re.findall(r"^stat::number_of_executed_units:\s+(\d+)", output, re.MULTILINE)
    return {
        "reader": reader.name,
        "reads": reader.reads,
        "executions": int(executed[-1]) if executed else 0,
        "crashes": int(status != 0),
        "seconds": round(time.perf_counter() - start),
        "memory_mb": max(0, (usage.ru_maxrss >> 10) - begun),
    }


def work(reader: Reader, flags: list[str], said: Path) -> None:
    """Fuzz a reader in this process and exit."""
    handle = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)  # where atheris reports errors
    os.dup2(handle, 2)
    allowed = set(scratch().iterdir())
    done = 0

    def once(data: bytes) -> None:
        nonlocal done
        accepts(reader, data)
        done += 1
        if done % 1000 == 0 and not set(scratch().iterdir()) <= allowed:
            raise AssertionError("a file was left behind")

    def mutator(data: bytes, size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, size)
        return reader.damage(data, rng, lambda inner: atheris.Mutate(inner, max(size, len(inner))))[:size]

    resource.setrlimit(resource.RLIMIT_AS, ((_memory("VmSize") + MEMORY) << 20,) * 2)
    print(f"begun with {_memory('VmRSS')} MB", file=sys.stderr, flush=True)
    atheris.Setup([sys.argv[0], *flags], once, custom_mutator=mutator)
    atheris.Fuzz()


def _memory(key: str) -> int:
    """Return the mapped or resident memory of this process in MB."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10


def update_record(run: dict[str, Any], executions: int) -> None:
    """Put the figures of a reader into the record, in place of older ones."""
    kept = json.loads(RECORD.read_text())["readers"] if RECORD.exists() else []
    by_name = {one["reader"]: one for one in kept} | {run["reader"]: run}
    for name, one in by_name.items():
        one["found"] = [found.says for found in FOUND if found.reader == name]
    record = {
        "asked": executions,
        "limits": {"memory_mb": MEMORY, "seconds": SECONDS},
        "made_with": {name: version(name) for name in ("atheris", "numpy", "pillow", "safetensors", "torch")},
        "readers": [by_name[name] for name in READERS if name in by_name],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """Fuzz the named readers, or all; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="reader", help=f"of {', '.join(READERS)}; or all")
    parser.add_argument("--executions", type=int, default=100_000, help="of each reader")
    parser.add_argument("--minutes", type=float, default=0, help="for each reader at most; 0: as long as it takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--try", action="store_true", dest="tried", help="leave results/fuzz.json as it is")
    options = parser.parse_args()
    if unknown := set(options.readers) - set(READERS):
        parser.error(f"unknown readers {', '.join(sorted(unknown))}; choose of {', '.join(READERS)}")
    failed = False
    for name in options.readers or READERS:
        run = fuzz(READERS[name], options.executions, options.minutes, options.seed)
        speed = run["executions"] / max(run["seconds"], 1)
        summary = f"{run['executions']:,} executions, {speed:,.0f} a second, {run['crashes']} crashes"
        print(f"{name}: {summary}, {run['memory_mb']} MB more than at the start", flush=True)
        failed |= bool(run["crashes"])
        if not options.tried:
            update_record(run, options.executions)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
