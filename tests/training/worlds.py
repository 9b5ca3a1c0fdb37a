"""What test_distributed.py lets several processes do: `python worlds.py FOLDER SIZE[,SIZE...] SCENARIO...`.

Each world of SIZE processes meets over loopback, goes through the scenarios, and leaves what its processes saw in
FOLDER/SIZE/SCENARIO. Processes are forked from one that has a single thread, so that they need not all import torch.
"""

import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch import nn

from noiseprop import add_noise, sigmas
from noiseprop.data import Split
from noiseprop.errors import RunError
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.serialization import format_evaluation
from noiseprop.evaluation.settings import Settings
from noiseprop.models import mlp
from noiseprop.noise.objectives import SquareRootBonus
from noiseprop.training import Recipe, loop, train


def parts(images: int = 131) -> Split:
    """131 images are 4 batches of 32 and one of 3: unequal parts for two processes, and nothing for one of four."""
    from conftest import made_up  # the one beside this file, which is where Python looks for a script's modules

    return Split(made_up(images, 1), made_up(41, 2), made_up(8, 3), seed=7, ratio=(5, 1, 1))


def network(*, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = mlp((36, 8, 3))
    add_noise(net, where=net.sites["fc"], init=0.5, example=torch.zeros(1, 1, 6, 6), key=5)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), net) if batch_norm else net


def learn(folder: Path, rank: int) -> None:
    """100 steps, with a bonus for sigma; the mean loss of the epoch so far, step by step."""
    net, losses = network(), []
    history = train(
        net,
        parts(),
        Recipe(epochs=20, batch_size=32),
        objective=SquareRootBonus(sigmas(net), 1e-2),
        progress=lambda step, steps, loss: losses.append(loss),
    )
    validation = [[epoch.validation_loss, epoch.validation_accuracy, epoch.train_accuracy] for epoch in history]
    (folder / f"{rank}.json").write_text(json.dumps({"losses": losses, "validation": validation}))
    save_file(dict(net.state_dict()), folder / f"{rank}.safetensors")


def noise(folder: Path, rank: int) -> None:
    """Two epochs of a network whose first layer puts out nothing but noise; what it put out, pass by pass."""
    net, seen = network(), {}
    for parameter in net.fc1.parameters(recurse=False):
        parameter.data.zero_()

    @net.fc1.noise.register_forward_hook
    def note(module, _inputs, output):
        if module is net.fc1.noise:  # and not that of the copy which is tried before the first epoch
            seen[f"{len(seen):03}"] = output.detach().clone()

    train(net, parts(), Recipe(epochs=2, batch_size=32, lr=0.0, sigma_lr=0.0, weight_decay=0.0))
    save_file(seen, folder / f"{rank}.safetensors")


def resume(folder: Path, rank: int) -> None:
    """Four epochs in one go, and four after a stop in the third; with batch norm, whose statistics differ meanwhile."""
    recipe, split = Recipe(epochs=4, batch_size=32, lr=1e-2), parts(150)
    train(whole := network(batch_norm=True), split, recipe, folder / "whole")

    class Stop(Exception):  # noqa: N818 - nothing is wrong
        pass

    stopped = network(batch_norm=True)
    calls = iter(range(99))

    def stop(*_):
        if next(calls) == 2 * (5 + 1) + 3:
            raise Stop

    stopped.register_forward_pre_hook(stop)
    try:
        train(stopped, split, recipe, folder / "parts")
    except Stop:
        dist.barrier()
    train(again := network(batch_norm=True), split, recipe, folder / "parts", resume=True)
    for name, net in (("whole", whole), ("parts", again)):
        save_file(dict(net.state_dict()), folder / f"{rank}-{name}.safetensors")


def refused(folder: Path, rank: int) -> None:
    """Processes that do not fit together: by seed, by data, by folder and by their network."""
    short, split = Recipe(epochs=1, batch_size=32), parts()
    other = replace(split, train=replace(split.train, images=255 - split.train.images)) if rank else split
    wide = mlp((36, 9, 3)) if rank else network()
    said = [
        refusal(network(), split, short, folder / "seed", seed=rank),
        refusal(network(), other, short, folder / "data"),
        refusal(network(), split, short, folder / f"folder-{rank}"),
        refusal(network(), split, short, None if rank else folder / "none"),
        refusal(wide, split, short, folder / "network"),
    ]
    (folder / f"{rank}.json").write_text(json.dumps(said))


def refusal(*arguments, **options) -> str:
    try:
        train(*arguments, **options)
    except RunError as error:
        return str(error)
    return "nothing was refused"


def dies(folder: Path, rank: int) -> None:
    """The last process is killed in the second epoch of three."""
    net = network()
    calls = iter(range(99))

    def die(*_):
        if rank == dist.get_world_size() - 1 and next(calls) == 5 + 1 + 3:
            os.kill(os.getpid(), signal.SIGKILL)

    net.register_forward_pre_hook(die)
    train(net, parts(), Recipe(epochs=3, batch_size=32), folder / "run")


def goes_on(folder: Path, rank: int) -> None:
    """After `dies`: to the end, and beside it a run that nobody disturbed."""
    train(network(), parts(), Recipe(epochs=3, batch_size=32), folder.with_name("dies") / "run", resume=True)
    train(network(), parts(), Recipe(epochs=3, batch_size=32), folder / "whole")


QUICK = Settings(
    attack_images=100, attack_draws=(1, 4), eot_images=70, vote_draws=4, vote_images=150, trust_images=40, batch_size=64
)


def judge(folder: Path, rank: int) -> None:
    """An evaluation of 300 images, whole and from an earlier one's first steps; what processes say that do not fit."""
    from conftest import made_up

    net, test = network(), made_up(300, 4)
    torch.manual_seed(1)
    surrogate, passes = mlp((36, 6, 3)), []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    whole = evaluate(net, test, settings=QUICK, surrogate=surrogate, checkpoint=folder / "kept")
    (folder / f"{rank}.json").write_text(format_evaluation(whole))
    in_whole = len(passes)
    dist.barrier()
    lines = (folder / "kept").read_text().splitlines(keepends=True)
    if rank == 0:
        (folder / "begun").write_text("".join(lines[:20]))
    dist.barrier()
    again = evaluate(net, test, settings=QUICK, surrogate=surrogate, checkpoint=folder / "begun")
    told = {"same": format_evaluation(again) == format_evaluation(whole), "passes": [in_whole, len(passes) - in_whole]}
    with torch.no_grad():
        net.fc1.weight[0, 0] += rank
    try:
        evaluate(net, test, settings=QUICK, surrogate=surrogate)
    except RunError as error:
        told["refused"] = str(error)
    (folder / f"{rank}-told.json").write_text(json.dumps(told))


class Odd(nn.Module):
    """Has a parameter that it does not use, and channels_last convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.head, self.unused = nn.Linear(16, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x)).relu().flatten(1))


def odd(folder: Path, rank: int) -> None:
    """A network with an unused parameter."""
    train(net := Odd(), parts(), Recipe(epochs=3, batch_size=32))
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / f"{rank}.safetensors")


def process(scenarios: list[str], folder: Path, rank: int, size: int) -> int:
    """What one process does; its exit code."""
    try:
        dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=60), rank=rank, world_size=size)
        for scenario in scenarios:
            (folder / scenario).mkdir(exist_ok=True)
            globals()[scenario](folder / scenario, rank)
        dist.destroy_process_group()
    except RunError as error:
        print(f"{rank}: {error}", file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 2
    return 0


def fork(scenarios: list[str], folder: Path, rank: int, size: int) -> int:
    """Start a process; its id."""
    if child := os.fork():
        return child
    code = process(scenarios, folder, rank, size)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    top, sizes, *scenarios = sys.argv[1:]
    torch.set_num_threads(1)
    loop._LOSS_CHECK_INTERVAL = 1  # so that progress tells of every step
    network()(torch.zeros(32, 1, 6, 6)).sum().backward()  # loads what would be loaded in every process
    codes = {}
    for size in map(int, sizes.split(",")):
        folder = Path(top) / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meeting").unlink(missing_ok=True)
        children = [fork(scenarios, folder, rank, size) for rank in range(size)]
        codes[size] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes))
