"""Algorithm 1: weights and sigma learn from one backward pass; seeded to the bit, stoppable, resumable."""

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
from torch.nn import functional
from torch.optim import Optimizer

from noiseprop.data import Split, batches, crop_and_flip, digest
from noiseprop.errors import InputError, RunError
from noiseprop.noise.objectives import AdversarialSigma, Objective
from noiseprop.noise.optim import SigmaAdam, sigmas, weights
from noiseprop.training.checkpoint import MODEL, STATE, load_state, save_model, save_state
from noiseprop.training.denormals import flushing_denormals
from noiseprop.training.machine import threads_to_go_on_with
from noiseprop.training.metrics import Epoch, loss_and_accuracy, sigma_statistics
from noiseprop.training.objectives import described
from noiseprop.training.recipes import Recipe, learning_rate
from noiseprop.training.run_folder import append_metrics, held, keep_metrics, open_run, read_config

_CHECK_EVERY = 32  # steps between two looks at the loss, each of which waits for the device

Progress = Callable[[int, int, float], None]
"""Called with the steps done, all steps of the training, and the mean loss of the epoch so far."""


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
) -> list[Epoch]:
    """Train a network, with learned noise where it has any, in place.

    Each step updates the weights with `recipe`'s optimizer and sigma with `SigmaAdam` (Eq. 7) from one backward pass.
    The last epoch's weights are the result: nothing is chosen, so the validation images only measure and the test
    images are not looked at. The run repeats to the bit on the same machine with the same number of threads; one that
    was killed and resumed ends with the same bits as one that was not, for it goes on with the threads it began with.

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
        progress: called every few steps.

    Returns:
        One `Epoch` per epoch, those before a resume included.

    Raises:
        InputError: the seed is negative or above 2**63 - 1, the split has no images, or the objective needs more than
            the loss on clean images.
        RunError: the folder holds a run and `resume` is off, was made with other settings or data, is damaged, or
            another process trains there; or the loss became infinite or NaN, and the folder keeps the last good epoch.

    Warns:
        NoisepropWarning: a run goes on with other versions, another processor or fewer cores than it began with.

    Source: Algorithm 1 and Table 1 of Xiao, Zhang and Peng (2021).
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"train: the seed must be at least 0 and below 2**63, got {seed}")
    if not (len(split.train) and len(split.validation)):
        raise InputError(f"train: {split.train.name} has no training or no validation images; give a larger data set")
    if isinstance(objective, AdversarialSigma):
        raise InputError("train has no adversarial loss, which AdversarialSigma needs; use it in a loop of your own")
    run = _Run(model, split, recipe, _optimizers(model, recipe), objective, seed, progress, threading.Event())
    with nullcontext() if run_dir is None else held(run_dir, resume=resume), _channels_last(model):
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
    stop: threading.Event


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
            if run_dir is not None:
                _keep(run, run_dir, history[-1])

    flushing_denormals(work, run.stop, threads=threads)
    return history


def _begin(run: _Run, run_dir: Path | None, settings: Mapping[str, Any] | None, *, resume: bool) -> list[Epoch]:
    """Make the run's folder or go back to its checkpoint; the epochs that are done."""
    if run_dir is None:
        return []
    open_run(run_dir, _settings(run, settings), resume=resume)
    if not (run_dir / STATE).exists():
        keep_metrics(run_dir, 0)
        return []
    done = load_state(run_dir / STATE, run.model, run.optimizers)
    save_model(run.model, run_dir / MODEL, epoch=done)  # a kill may have come between the two files
    return [Epoch.from_json(line) for line in keep_metrics(run_dir, done)]


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
        torch.manual_seed(order)
        loss, accuracy = _pass(run, epoch, torch.Generator().manual_seed(order))
        validation = loss_and_accuracy(run.model, run.split.validation, precision=run.recipe.precision)
    _check(validation[0], epoch, "validation loss")
    return Epoch(epoch, loss, accuracy, *validation, sigma_statistics(run.model), time.perf_counter() - start)


def _pass(run: _Run, epoch: int, generator: torch.Generator) -> tuple[float, float]:
    """One pass over the training images; mean loss and accuracy."""
    recipe, images, device = run.recipe, len(run.split.train), next(run.model.parameters()).device
    steps = math.ceil(images / recipe.batch_size)
    before = (epoch - 1) * steps
    total, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    augment = crop_and_flip if recipe.augment else None
    run.model.train()
    for step, (x, y) in enumerate(batches(run.split.train, recipe.batch_size, generator=generator, augment=augment), 1):
        for group in run.optimizers["weights"].param_groups:
            group["lr"] = learning_rate(recipe, before + step - 1, steps)
        # Of images with one channel `to(memory_format=...)` makes a copy, `contiguous` finds that they are so already.
        loss, hits = _step(run, x.to(device).contiguous(memory_format=torch.channels_last), y.to(device))
        total.add_(loss, alpha=len(y))
        correct += hits
        if run.stop.is_set():
            raise KeyboardInterrupt
        if step % _CHECK_EVERY == 0 or step == steps:
            mean = _check(float(total) / min(step * recipe.batch_size, images), epoch, "loss")
            if run.progress is not None:
                run.progress(before + step, recipe.epochs * steps, mean)
    return float(total) / images, int(correct) / images


def _step(run: _Run, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration of Algorithm 1; the batch's mean loss and number of hits, left on the device."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=run.recipe.precision == "bf16"):
        logits: Tensor = run.model(x)
    loss = functional.cross_entropy(logits.float(), y)
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


def _check(loss: float, epoch: int, name: str) -> float:
    if not math.isfinite(loss):
        raise RunError(
            f"the {name} became {loss} in epoch {epoch}, so training stopped; the epochs before it are kept; "
            "try a smaller learning rate"
        )
    return loss


def _settings(run: _Run, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json says: all that decides the run's bits, but the machine."""
    split = run.split
    sizes = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    data = {"name": split.train.name, "split_seed": split.seed, "ratio": list(split.ratio), "images": sizes}
    objective = {} if run.objective is None else {"objective": described(run.objective)}
    ours = {"data": {**data, "digest": digest(split)}, "recipe": asdict(run.recipe), "seed": run.seed}
    return {**(settings or {}), **ours, **objective}
