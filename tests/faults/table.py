"""The faults that are tried, and the table of what came of them."""

import json
from pathlib import Path

import msgspec

from noiseprop.environment import describe_environment
from noiseprop.files.atomic import write_json

FAULTS = {
    "kill": "SIGKILL at a random moment of a training",
    "kill-write": "SIGKILL before each file operation while an epoch is added to a run folder",
    "kill-evaluate": "SIGKILL at a random moment of an evaluation",
    "kill-cache": "SIGKILL before each file operation while the cache of decoded images is built",
    **{
        f"{name}-{command}": f"{name} during `noiseprop {command}`"
        for name in ("SIGTERM", "Ctrl-C")
        for command in ("train", "evaluate", "reproduce")
    },
    "full-config": "disk full at `config.json`",
    "full-metrics": "disk full at `metrics.jsonl`",
    "full-state": "disk full at `state.safetensors`",
    "full-model": "disk full at `model.safetensors`",
    "full-partial": "disk full at the finished steps of an evaluation",
    "full-evaluation": "disk full at `evaluation.json`",
    "full-inspect": "disk full at the files of `noiseprop inspect`",
    "full-results": "disk full at a results file",
    "full-worker": "disk full under a worker of `noiseprop reproduce`",
    "full-cache": "disk full at the cache of decoded images",
    "full-stdout": "disk full on standard output (`> /dev/full`)",
    "damage-config": "`config.json` damaged or removed",
    "damage-metrics": "`metrics.jsonl` damaged or removed",
    "damage-state": "`state.safetensors` damaged or removed",
    "damage-model": "`model.safetensors` damaged or removed",
    "damage-evaluation": "`evaluation.json` damaged or removed",
    "damage-partial": "the finished steps of an evaluation damaged or removed",
    "damage-accuracy": "`test_accuracy.json` of a reproduction damaged or removed",
    "damage-surrogate": "the cached surrogate damaged or removed",
    "damage-cache": "the cache of decoded images damaged or removed",
    "damage-results": "a results file damaged or removed",
    "lock": "a second process on a folder in use",
    "lock-killed": "a folder whose process was killed",
    "node": "a node of a Ray cluster lost during training",
    "nan": "NaN in a batch",
}


class Table:
    """What was tried, how often, and what came of it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, int]] = {name: {} for name in FAULTS}

    def add(self, fault: str, outcome: str, times: int = 1) -> None:
        self.rows[fault][outcome] = self.rows[fault].get(outcome, 0) + times

    def publish(self, path: Path) -> None:
        """Write what was tried to a file, in which what was not stays as it is."""
        kept = {row["name"]: row for row in json.loads(path.read_text())["faults"]} if path.exists() else {}
        for name, outcomes in self.rows.items():
            if outcomes:
                tried = sum(outcomes.values())
                kept[name] = {"name": name, "fault": FAULTS[name], "tried": tried, "outcomes": outcomes}
        rows = [kept[name] for name in FAULTS if name in kept]
        write_json(
            path,
            {
                "format": "noiseprop faults, version 1",
                "made_with": msgspec.structs.asdict(describe_environment()),
                "faults": rows,
            },
        )


ON = "resumed to the same bits"
TOLD = "reported in one sentence"
TOLD_ON = f"{TOLD}, then {ON}"
AGAIN = "remade, the same bits"
HARMLESS = "read correctly"
UNUSED = "not needed, the same bits"
