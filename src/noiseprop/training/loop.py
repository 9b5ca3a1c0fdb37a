"""Algorithm 1: weights and sigma learn from one backward pass; bit-reproducible, interruptible, resumable."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noiseprop.data import Split, batches, crop_and_flip
from noiseprop.distributed import World, get_world
from noiseprop.errors import InputError, RunError
from noiseprop.models.config import ModelConfig, PythonModelConfig
from noiseprop.noise.objectives import AdversarialSigma, Objective
from noiseprop.noise.sigma_adam import SigmaAdam, sigmas, weights
from noiseprop.training.checkpoint import load_state, save_model, save_state
from noiseprop.training.denormals import run_without_denormals
from noiseprop.training.memory_format import use_memory_format
from noiseprop.training.metrics import Epoch, compute_sigma_statistics, loss_and_accuracy
from noiseprop.training.objective_config import describe_objective
from noiseprop.training.preflight import choose_memory_format
from noiseprop.training.recipes import Recipe, compute_learning_rate
from noiseprop.training.resume import choose_resume_threads
from noiseprop.training.run_config import RunSettings, describe_data
from noiseprop.training.run_folder import (
    CONFIG,
    MODEL,
    STATE,
    append_epoch,
    check_run_folder,
    lock_run,
    open_run,
    read_config,
    read_metrics,
    truncate_metrics,
)
from noiseprop.training.sharding import shard_batches

_LOSS_CHECK_INTERVAL = 32  # steps; each check waits for the device

TrainingProgress = Callable[[int, int, float], None]
"""Called with the number of finished steps, of all steps, and the mean loss of the epoch so far."""

EpochCallback = Callable[[Epoch, nn.Module], None]
"""Called with a finished epoch and the model after it."""


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    run_dir: Path | None = None,
    *,
    seed: int = 0,
    objective: Objective | None = None,
    model_config: ModelConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: TrainingProgress | None = None,
    at_epoch_end: EpochCallback | None = None,
) -> list[Epoch]:
    """Train a network in place, together with its learned noise, if it has any.

    Each step updates the weights with `recipe`'s optimizer and sigma with `SigmaAdam` (Eq. 7) from one backward pass.
    The result is the model after the last epoch: nothing is selected, so validation images only measure and test
    images are not used. A run is bit-reproducible on the same machine with the same number of threads. A run that was
    killed and resumed ends with the same bits as an uninterrupted one, because it keeps its number of threads.

    Before the first epoch, a copy of the model makes one training step, so that a model that cannot be trained, saved
    or evaluated raises an error with nothing written.

    Called in every process of a `torch.distributed` process group, it trains one model in all of them: see
    `noiseprop.distributed`. Only the first process writes to the folder, which all have to see.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, classes); its device is used.
        split: `train` is learned from, `validation` is measured after each epoch.
        recipe: settings; see `Recipe`.
        run_dir: folder for config.json, metrics.jsonl, model.safetensors and the state to resume from, written after
            each epoch; None writes nothing.
        seed: seed of the order of the images and of their augmentation. The noise has its own seed in the model.
        objective: keeps the learned noise from collapsing to zero; made for this model. None for the plain loss.
        model_config: how the model was made, so that `load_run` can make it again.
        settings: further settings that identify the run; JSON-able, recorded in config.json.
        resume: continue the run in `run_dir`, or start it there if it has no checkpoint yet. `model` and `objective`
            must be built as for the start; `recipe` may have more epochs, unless its schedule is one-cycle.
        progress: called every few steps; only in the first process.
        at_epoch_end: called after each new epoch, once it is saved; only in the first process.

    Returns:
        One `Epoch` per epoch, including those before a resume.

    Raises:
        InputError: the seed is negative or above 2**63 - 1, the split has no images, the objective needs more than
            the loss on clean images, or the model cannot be trained, evaluated or saved.
        RunError: the folder holds a run and `resume` is off, was made with other settings or data, is damaged, or
            another process trains there; the loss became infinite or NaN, and the folder keeps the last good epoch;
            or a process of several requests something else than the first one, or ends.

    Warns:
        NoisepropWarning: a run resumes with other versions, another processor, fewer cores or another number of
            processes than it started with.

    Source: Algorithm 1 and Table 1 of Xiao, Zhang and Peng (2021).
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"train: the seed must be at least 0 and below 2**63, got {seed}")
    if not (len(split.train) and len(split.validation)):
        raise InputError(f"train: {split.train.name} has no training or no validation images; give a larger data set")
    if isinstance(objective, AdversarialSigma):
        raise InputError("train has no adversarial loss, which AdversarialSigma needs; use it in a custom loop")
    world = get_world()
    if run_dir is not None and world.is_first:
        check_run_folder(run_dir, resume=resume)
    memory_format = choose_memory_format(model, split, recipe, world, is_saved=run_dir is not None)
    training = _Training(
        model=model,
        split=split,
        recipe=recipe,
        optimizers=make_optimizers(model, recipe),
        objective=objective,
        seed=int(seed),
        model_config=model_config or PythonModelConfig(type(model).__qualname__),
        settings=settings or {},
        progress=progress if world.is_first else None,
        at_epoch_end=at_epoch_end if world.is_first else None,
        memory_format=memory_format,
        stop=threading.Event(),
        world=world,
    )
    lock = nullcontext() if run_dir is None or not world.is_first else lock_run(run_dir, resume=resume)
    with world.report_lost_process(), lock, use_memory_format(model, memory_format):
        return _train_epochs(training, run_dir, resume=resume)


@dataclass(frozen=True)
class _Training:
    """State that every part of a training needs."""

    model: nn.Module
    split: Split
    recipe: Recipe
    optimizers: Mapping[str, Optimizer]
    objective: Objective | None
    seed: int
    model_config: ModelConfig
    settings: Mapping[str, Any]
    progress: TrainingProgress | None
    at_epoch_end: EpochCallback | None
    memory_format: torch.memory_format
    stop: threading.Event
    world: World


def _train_epochs(run: _Training, run_dir: Path | None, *, resume: bool) -> list[Epoch]:
    """Start or resume, and train epoch by epoch."""
    history = _start_or_resume(run, run_dir, resume=resume)
    if len(history) >= run.recipe.epochs:
        return history
    threads = None
    if run_dir is not None and history:
        threads = choose_resume_threads(run_dir, read_config(run_dir).made_with)

    def work() -> None:
        for epoch in range(len(history) + 1, run.recipe.epochs + 1):
            history.append(_train_epoch(run, epoch))
            if run_dir is not None and run.world.is_first:
                _save_epoch(run, run_dir, history[-1])
            if run.at_epoch_end is not None:
                run.at_epoch_end(history[-1], run.model)

    run_without_denormals(work, run.stop, threads=threads)
    run.world.wait_for_all()  # for the files of the first process
    return history


def _start_or_resume(run: _Training, run_dir: Path | None, *, resume: bool) -> list[Epoch]:
    """Create the run folder or return to its checkpoint; return the finished epochs."""
    if run_dir is None and run.world.size == 1:
        return []
    settings = _describe_run(run)
    shapes = {name: list(value.shape) for name, value in run.model.state_dict().items() if isinstance(value, Tensor)}
    plan = {**msgspec.to_builtins(settings), "network": shapes, "resume": resume, "run folder": run_dir is not None}
    run.world.check_same(plan)
    if run_dir is None:
        return []
    if run.world.is_first:
        open_run(run_dir, settings, resume=resume, processes=run.world.size)
        if not (run_dir / STATE).exists():
            truncate_metrics(run_dir, 0)
    run.world.wait_for_all()
    done = load_state(run_dir / STATE, run.model, run.optimizers) if (run_dir / STATE).exists() else 0
    run.world.check_same({"the run folder": _describe_run_folder(run_dir, done)})
    if done == 0:
        return []
    if not run.world.is_first:
        return read_metrics(run_dir)[:done]
    save_model(run.model, run_dir / MODEL, epoch=done)  # a kill may have come between the two files
    return truncate_metrics(run_dir, done)


def _describe_run_folder(run_dir: Path, done: int) -> str:
    """Return what a process sees in the run folder."""
    if not (run_dir / CONFIG).is_file():
        return "no run"
    content = hashlib.sha256((run_dir / CONFIG).read_bytes()).hexdigest()
    return f"a run with {done} epochs and the settings {content[:12]}"


def _describe_run(run: _Training) -> RunSettings:
    """Return everything that decides the bits of a run, except for the environment."""
    return RunSettings(
        model=run.model_config,
        data=describe_data(run.split),
        recipe=run.recipe,
        seed=run.seed,
        objective=None if run.objective is None else describe_objective(run.objective),
        extra=msgspec.json.decode(msgspec.json.encode(dict(run.settings))),
    )


def make_optimizers(model: nn.Module, recipe: Recipe) -> dict[str, Optimizer]:
    """Return the optimizer of the weights (Table 1) and, if sigma is learned, that of sigma (Eq. 7)."""
    trained = [parameter for parameter in weights(model) if parameter.requires_grad]
    learned = [parameter for parameter in sigmas(model) if parameter.requires_grad]
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        weight_optimizer: Optimizer = torch.optim.Adam(trained, lr=recipe.lr, weight_decay=decay, fused=True)
    else:
        momentum = recipe.momentum
        weight_optimizer = torch.optim.SGD(trained, lr=recipe.lr, momentum=momentum, weight_decay=decay, fused=True)
    optimizers: dict[str, Optimizer] = {"weights": weight_optimizer}
    if learned:
        optimizers["sigma"] = SigmaAdam(learned, lr=recipe.sigma_lr)
    return optimizers


def _train_epoch(run: _Training, epoch: int) -> Epoch:
    """Train for one epoch and measure it. All its randomness outside the noise comes from (seed, epoch)."""
    start = time.perf_counter()
    if run.objective is not None:
        run.objective.start_epoch(epoch)
    order = int(np.random.SeedSequence((run.seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng():  # for other random layers of a user's network, such as dropout
        torch.manual_seed(order ^ run.world.rank)  # each process has other rows, and so another dropout
        loss, accuracy = _train_on_images(run, epoch, torch.Generator().manual_seed(order))
        run.world.share_buffers(run.model)
        validation = loss_and_accuracy(
            run.model,
            run.split.validation,
            precision=run.recipe.precision,
            world=run.world,
            memory_format=run.memory_format,
        )
    _check_finite(validation[0], epoch, "validation loss")
    sigma = compute_sigma_statistics(run.model)
    for layer, statistics in sigma.items():
        _check_finite(statistics.mean, epoch, f"sigma of {layer.removesuffix('.noise')}")
    return Epoch(epoch, loss, accuracy, *validation, sigma, time.perf_counter() - start)


def _train_on_images(run: _Training, epoch: int, generator: torch.Generator) -> tuple[float, float]:
    """Pass once over the training images; return mean loss and accuracy."""
    recipe, images, device = run.recipe, len(run.split.train), next(run.model.parameters()).device
    steps = math.ceil(images / recipe.batch_size)
    before = (epoch - 1) * steps
    total, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    augment = crop_and_flip if recipe.augment else None
    run.model.train()
    model, mean = run.world.wrap_model(run.model), 0.0
    with shard_batches(run.model, run.world) as shard:
        whole = batches(run.split.train, recipe.batch_size, generator=generator, augment=augment)
        for step, (x, y) in enumerate(whole, 1):
            for group in run.optimizers["weights"].param_groups:
                group["lr"] = compute_learning_rate(recipe, before + step - 1, steps)
            loss, hits = _train_on_batch(run, model, *shard(x, y), len(y))
            total.add_(loss, alpha=len(y))
            correct += hits
            if run.stop.is_set():
                raise KeyboardInterrupt
            if step % _LOSS_CHECK_INTERVAL == 0 or step == steps:
                so_far = float(run.world.sum_over_processes(total)) / run.world.size
                mean = _check_finite(so_far / min(step * recipe.batch_size, images), epoch, "loss")
                if run.progress is not None:
                    run.progress(before + step, recipe.epochs * steps, mean)
    return mean, int(run.world.sum_over_processes(correct)) / images


def _train_on_batch(run: _Training, model: nn.Module, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Run one iteration of Algorithm 1 on a batch of `count` images, of which this process may have a part.

    Returns:
        Mean loss of the batch, or this process's share of it (see `World.share_loss`), and the number of correct
        images, both left on the device.
    """
    device = next(run.model.parameters()).device
    # For images with one channel, `to(memory_format=...)` copies, whereas `contiguous` sees that nothing changes.
    x, y = x.to(device).contiguous(memory_format=run.memory_format), y.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.recipe.precision == "bf16"):
        logits: Tensor = model(x)
    loss = run.world.share_loss(logits.float(), y, count)
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss.backward() if run.objective is None else run.objective.backward(loss)
    for optimizer in run.optimizers.values():
        optimizer.step()
    if run.objective is not None:
        run.objective.project()
    return loss.detach(), (logits.detach().argmax(1) == y).count_nonzero()


def _save_epoch(run: _Training, run_dir: Path, epoch: Epoch) -> None:
    """Write an epoch to the disk; the rename of the state commits it."""
    for name, value in run.model.named_parameters():
        if value.requires_grad and not value.detach().isfinite().all():  # such a file could not be read again
            _check_finite(math.nan, epoch.epoch, name)
    append_epoch(run_dir, epoch)
    save_state(run_dir / STATE, run.model, run.optimizers, epoch=epoch.epoch)
    save_model(run.model, run_dir / MODEL, epoch=epoch.epoch)


def _check_finite(value: float, epoch: int, name: str) -> float:
    if not math.isfinite(value):
        raise RunError(
            f"the {name} became {value} in epoch {epoch}, so training stopped; earlier epochs are saved; "
            "try a smaller learning rate"
        )
    return value
