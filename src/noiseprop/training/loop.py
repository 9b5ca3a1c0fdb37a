"""Algorithm 1: weights and sigma learn from one backward pass; seeded to the bit, stoppable, resumable."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noiseprop.data import Split, batches, crop_and_flip, digest
from noiseprop.distributed import World, world
from noiseprop.environment import threads_to_go_on_with
from noiseprop.errors import InputError, RunError
from noiseprop.noise.objectives import AdversarialSigma, Objective
from noiseprop.noise.sigma_adam import SigmaAdam, sigmas, weights
from noiseprop.training.checkpoint import MODEL, STATE, load_state, save_model, save_state
from noiseprop.training.denormals import flushing_denormals
from noiseprop.training.metrics import Epoch, loss_and_accuracy, sigma_statistics
from noiseprop.training.objective_config import described
from noiseprop.training.recipes import Recipe, learning_rate
from noiseprop.training.run_folder import (
    CONFIG,
    append_metrics,
    held,
    keep_metrics,
    open_run,
    read_config,
    read_metrics,
)

_CHECK_EVERY = 32  # steps between two looks at the loss, each of which waits for the device

Progress = Callable[[int, int, float], None]
"""Called with the steps done, all steps of the training, and the mean loss of the epoch so far."""

EpochEnd = Callable[[Epoch, nn.Module], None]
"""Called with an epoch that has just ended, and the model as it left it."""


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    run_dir: Path | None = None,
    *,
    seed: int = 0,
    objective: Objective | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    at_epoch_end: EpochEnd | None = None,
) -> list[Epoch]:
    """Train a network, with learned noise where it has any, in place.

    Each step updates the weights with `recipe`'s optimizer and sigma with `SigmaAdam` (Eq. 7) from one backward pass.
    The last epoch's weights are the result: nothing is chosen, so the validation images only measure and the test
    images are not looked at. The run repeats to the bit on the same machine with the same number of threads; one that
    was killed and resumed ends with the same bits as one that was not, for it goes on with the threads it began with.

    Called in every process of a `torch.distributed` process group, it trains one model in all of them: see
    `noiseprop.distributed`. Only the first one writes to the folder, which all have to see.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, classes); its device is used.
        split: `train` is learned from, `validation` is measured after each epoch.
        recipe: settings; see `Recipe`.
        run_dir: folder for config.json, metrics.jsonl, model.safetensors and the state to resume from, written after
            each epoch; None keeps nothing.
        seed: decides the order of the images and their augmentation. The noise has its own seed in the model.
        objective: what keeps the learned noise from vanishing, made for this model; the plain loss if None.
        settings: what else makes this run this run (the model's name, its seed); JSON-able, kept in config.json.
        resume: continue the run in `run_dir`, or start it there if it has no checkpoint yet. `model` and `objective`
            must then be built as they were for the start; `recipe` may have more epochs, unless it is one-cycle.
        progress: called every few steps; of several processes, in the first.
        at_epoch_end: called after each epoch that is trained here, once it is kept; of several processes, in the first.

    Returns:
        One `Epoch` per epoch, those before a resume included.

    Raises:
        InputError: the seed is negative or above 2**63 - 1, the split has no images, or the objective needs more than
            the loss on clean images.
        RunError: the folder holds a run and `resume` is off, was made with other settings or data, is damaged, or
            another process trains there; or the loss became infinite or NaN, and the folder keeps the last good epoch;
            or of several processes one asks for something else than the first, or ends.

    Warns:
        NoisepropWarning: a run goes on with other versions, another processor, fewer cores or another number of
            processes than it began with.

    Source: Algorithm 1 and Table 1 of Xiao, Zhang and Peng (2021).
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"train: the seed must be at least 0 and below 2**63, got {seed}")
    if not (len(split.train) and len(split.validation)):
        raise InputError(f"train: {split.train.name} has no training or no validation images; give a larger data set")
    if isinstance(objective, AdversarialSigma):
        raise InputError("train has no adversarial loss, which AdversarialSigma needs; use it in a loop of your own")
    here, stop = world(), threading.Event()
    run = _Run(model, split, recipe, _optimizers(model, recipe), objective, seed, progress, at_epoch_end, stop, here)
    hold = nullcontext() if run_dir is None or not here.first else held(run_dir, resume=resume)
    with here.watched(), hold, _channels_last(model):
        return _train(run, run_dir, settings, resume=resume)


@dataclass(frozen=True)
class _Run:
    """What every part of a training needs."""

    model: nn.Module
    split: Split
    recipe: Recipe
    optimizers: Mapping[str, Optimizer]
    objective: Objective | None
    seed: int
    progress: Progress | None
    at_epoch_end: EpochEnd | None
    stop: threading.Event
    world: World


@contextmanager
def _channels_last(model: nn.Module) -> Generator[None]:
    """Convolutions gain a quarter from channels_last on CPUs; values stay as they are."""
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stubs lack this form
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]: as above


def _train(run: _Run, run_dir: Path | None, settings: Mapping[str, Any] | None, *, resume: bool) -> list[Epoch]:
    """Begin or go on, epoch by epoch."""
    history = _begin(run, run_dir, settings, resume=resume)
    if len(history) >= run.recipe.epochs:
        return history
    threads = None
    if run_dir is not None and history:
        threads = threads_to_go_on_with(run_dir, read_config(run_dir).get("made_with"))

    def work() -> None:
        for epoch in range(len(history) + 1, run.recipe.epochs + 1):
            history.append(_epoch(run, epoch))
            if run_dir is not None and run.world.first:
                _keep(run, run_dir, history[-1])
            if run.at_epoch_end is not None and run.world.first:
                run.at_epoch_end(history[-1], run.model)

    flushing_denormals(work, run.stop, threads=threads)
    run.world.wait()  # for the first one's files
    return history


def _begin(run: _Run, run_dir: Path | None, settings: Mapping[str, Any] | None, *, resume: bool) -> list[Epoch]:
    """Make the run's folder or go back to its checkpoint; the epochs that are done."""
    if run_dir is None and run.world.size == 1:
        return []
    asked = _settings(run, settings)
    shapes = {name: list(tensor.shape) for name, tensor in run.model.state_dict().items()}
    run.world.check_same({**asked, "network": shapes, "resume": resume, "run folder": run_dir is not None})
    if run_dir is None:
        return []
    if run.world.first:
        open_run(run_dir, asked, resume=resume)
        if not (run_dir / STATE).exists():
            keep_metrics(run_dir, 0)
    run.world.wait()
    done = load_state(run_dir / STATE, run.model, run.optimizers) if (run_dir / STATE).exists() else 0
    run.world.check_same({"the run folder": _seen(run_dir, done)})
    if done == 0:
        return []
    if not run.world.first:
        return [Epoch.from_json(line) for line in read_metrics(run_dir)[:done]]
    save_model(run.model, run_dir / MODEL, epoch=done)  # a kill may have come between the two files
    return [Epoch.from_json(line) for line in keep_metrics(run_dir, done)]


def _seen(run_dir: Path, done: int) -> str:
    """What a process sees in the run's folder."""
    if not (run_dir / CONFIG).is_file():
        return "no run"
    digest = hashlib.sha256((run_dir / CONFIG).read_bytes()).hexdigest()
    return f"a run with {done} epochs and the settings {digest[:12]}"


def _optimizers(model: nn.Module, recipe: Recipe) -> dict[str, Optimizer]:
    """The weights' optimizer of Table 1 and, where sigma is learned, Eq. 7's."""
    trained = [parameter for parameter in weights(model) if parameter.requires_grad]
    learned = [parameter for parameter in sigmas(model) if parameter.requires_grad]
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        ours: Optimizer = torch.optim.Adam(trained, lr=recipe.lr, weight_decay=decay, fused=True)
    else:
        ours = torch.optim.SGD(trained, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay, fused=True)
    optimizers: dict[str, Optimizer] = {"weights": ours}
    if learned:
        optimizers["sigma"] = SigmaAdam(learned, lr=recipe.sigma_lr)
    return optimizers


def _epoch(run: _Run, epoch: int) -> Epoch:
    """Train for one epoch and measure it. All its randomness outside the noise comes from (seed, epoch)."""
    start = time.perf_counter()
    if run.objective is not None:
        run.objective.start_epoch(epoch)
    order = int(np.random.SeedSequence((run.seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng():  # for what else a user's network draws, dropout for one
        torch.manual_seed(order ^ run.world.rank)  # other rows in each process, so another dropout
        loss, accuracy = _pass(run, epoch, torch.Generator().manual_seed(order))
        run.world.share_buffers(run.model)
        validation = loss_and_accuracy(run.model, run.split.validation, precision=run.recipe.precision, world=run.world)
    _check(validation[0], epoch, "validation loss")
    sigma = sigma_statistics(run.model)
    for layer, values in sigma.items():
        _check(values["mean"], epoch, f"sigma of {layer.removesuffix('.noise')}")
    return Epoch(epoch, loss, accuracy, *validation, sigma, time.perf_counter() - start)


def _pass(run: _Run, epoch: int, generator: torch.Generator) -> tuple[float, float]:
    """One pass over the training images; mean loss and accuracy."""
    recipe, images, device = run.recipe, len(run.split.train), next(run.model.parameters()).device
    steps = math.ceil(images / recipe.batch_size)
    before = (epoch - 1) * steps
    total, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    augment = crop_and_flip if recipe.augment else None
    run.model.train()
    model, mean = run.world.parallel(run.model), 0.0
    with run.world.sharding(run.model) as own:
        whole = batches(run.split.train, recipe.batch_size, generator=generator, augment=augment)
        for step, (x, y) in enumerate(whole, 1):
            for group in run.optimizers["weights"].param_groups:
                group["lr"] = learning_rate(recipe, before + step - 1, steps)
            loss, hits = _step(run, model, *own(x, y), len(y))
            total.add_(loss, alpha=len(y))
            correct += hits
            if run.stop.is_set():
                raise KeyboardInterrupt
            if step % _CHECK_EVERY == 0 or step == steps:
                so_far = float(run.world.total(total)) / run.world.size
                mean = _check(so_far / min(step * recipe.batch_size, images), epoch, "loss")
                if run.progress is not None and run.world.first:
                    run.progress(before + step, recipe.epochs * steps, mean)
    return mean, int(run.world.total(correct)) / images


def _step(run: _Run, model: nn.Module, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One iteration of Algorithm 1 on a batch of `count` images, of which this process may have a part.

    Returns:
        The batch's mean loss, or this process's share of it (see `World.loss`), and its number of hits, left on the
        device.
    """
    device = next(run.model.parameters()).device
    # Of images with one channel `to(memory_format=...)` makes a copy, `contiguous` finds that they are so already.
    x, y = x.to(device).contiguous(memory_format=torch.channels_last), y.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.recipe.precision == "bf16"):
        logits: Tensor = model(x)
    loss = run.world.loss(logits.float(), y, count)
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss.backward() if run.objective is None else run.objective.backward(loss)
    for optimizer in run.optimizers.values():
        optimizer.step()
    if run.objective is not None:
        run.objective.project()
    return loss.detach(), (logits.detach().argmax(1) == y).count_nonzero()


def _keep(run: _Run, run_dir: Path, epoch: Epoch) -> None:
    """Put an epoch on the disk; the state's rename is what makes it count."""
    append_metrics(run_dir, asdict(epoch))
    save_state(run_dir / STATE, run.model, run.optimizers, epoch=epoch.epoch)
    save_model(run.model, run_dir / MODEL, epoch=epoch.epoch)


def _check(value: float, epoch: int, name: str) -> float:
    if not math.isfinite(value):
        raise RunError(
            f"the {name} became {value} in epoch {epoch}, so training stopped; the epochs before it are kept; "
            "try a smaller learning rate"
        )
    return value


def _settings(run: _Run, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json says: all that decides the run's bits, but the machine."""
    split = run.split
    sizes = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    data = {"name": split.train.name, "split_seed": split.seed, "ratio": list(split.ratio), "images": sizes}
    if split.train.path:
        data["path"] = split.train.path
    objective = {} if run.objective is None else {"objective": described(run.objective)}
    ours = {"data": {**data, "digest": digest(split)}, "recipe": asdict(run.recipe), "seed": run.seed}
    return {**(settings or {}), **ours, **objective}
