"""Evaluate every foreign network in each of two gloo processes: `python two_processes.py FOLDER` under torchrun."""

import sys
from pathlib import Path

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks.foreign_networks import NETWORKS
from tests.attacks.test_foreign_networks import assert_left_as_found, snapshot
from tests.evaluation.test_foreign_networks import QUICK, dataset, in_place_and_noisy

from noiseprop.evaluation import evaluate
from noiseprop.evaluation.serialization import format_evaluation


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, make in NETWORKS.items():
        model, surrogate = in_place_and_noisy(make).train(), make()
        before = snapshot(model)
        text = format_evaluation(evaluate(model, dataset(), settings=QUICK, surrogate=surrogate))
        assert_left_as_found(model, before)
        Path(sys.argv[1], f"{name}-{dist.get_rank()}.json").write_text(text, encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
