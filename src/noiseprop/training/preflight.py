"""Checks before the first epoch: a model that cannot be trained, evaluated or saved raises an error early."""

import torch
from torch import Tensor, nn

from noiseprop.data import Split, batches
from noiseprop.distributed import World
from noiseprop.errors import InputError
from noiseprop.models.trial import check_pass, check_training_step, copy_model
from noiseprop.training.memory_format import use_memory_format
from noiseprop.training.recipes import Recipe


def choose_memory_format(
    model: nn.Module, split: Split, recipe: Recipe, world: World, *, is_saved: bool
) -> torch.memory_format:
    """Check a model by a training step of a copy, and return the fastest memory format that it allows.

    Convolutions on CPUs are a quarter faster in channels_last. Networks that call `x.view(...)` on the output of a
    convolution work in the contiguous format only.

    Args:
        model: the model; it stays as it is.
        split: data of the training.
        recipe: its settings.
        world: processes that share each batch.
        is_saved: whether checkpoints will be written.

    Raises:
        InputError: the model cannot be trained, evaluated or, if `is_saved`, written to checkpoints.
    """
    name = f"train: {type(model).__qualname__}"
    _check_parameters(name, model)
    if is_saved:
        check_state_dict(name, model)
    try:
        _check_passes(name, model, split, recipe, world, torch.channels_last)
    except InputError:
        _check_passes(name, model, split, recipe, world, torch.contiguous_format)
        return torch.contiguous_format
    return torch.channels_last


def check_state_dict(name: str, model: nn.Module) -> None:
    """Check that a checkpoint can hold a model's state and that a model can be filled from it.

    Raises:
        InputError: the state holds something else than tensors, or tensors that cannot be filled.
    """
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} has the state {key!r} of type {type(value).__name__}, but checkpoints hold tensors only; "
                "return a tensor from get_extra_state, or train without a run folder"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise InputError(f"{name} has the state {key!r}, which is not a dense tensor; train without a run folder")
        if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)):
            raise InputError(
                f"{name} has the state {key!r}, an expanded tensor that a checkpoint cannot fill; call .clone() on it"
            )


def _check_parameters(name: str, model: nn.Module) -> None:
    for key, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"{name} has the lazy parameter {key}; call the model on a batch of images first")
        if not parameter.requires_grad:
            continue
        if parameter.is_complex():
            raise InputError(
                f"{name} has the complex parameter {key}, which train does not support; use torch.view_as_real"
            )
        if not parameter.detach().isfinite().all():
            raise InputError(f"{name} has NaN or infinity in the parameter {key}; initialize it, or freeze it")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{name} has no parameters that could be trained; set requires_grad")


def _check_passes(
    name: str, model: nn.Module, split: Split, recipe: Recipe, world: World, memory_format: torch.memory_format
) -> None:
    device, classes = next(model.parameters()).device, len(split.train.classes)
    count = min(recipe.batch_size, len(split.train))
    images, _ = next(batches(split.train[:count], count, generator=None))
    x = images.to(device).contiguous(memory_format=memory_format)
    trial = copy_model(model)
    if trial is None:
        return
    with use_memory_format(trial, memory_format):
        for size in _list_batch_sizes(len(split.train), recipe.batch_size, world):
            try:
                check_training_step(name, trial, x[:size], classes, allow_more=True)
            except InputError as error:
                if size > 1:
                    raise
                raise InputError(
                    f"{error}; the last batch of the training has a single image: choose another batch size than "
                    f"{recipe.batch_size}, or one image more or less"
                ) from error
        with torch.random.fork_rng(), torch.no_grad():
            check_pass(name, trial, x[:2], classes, training=False, allow_more=True)


def _list_batch_sizes(images: int, batch_size: int, world: World) -> list[int]:
    """Return the sizes of batches worth a trial: the largest share of a process, and 1 if it occurs."""
    counts = {min(images, batch_size), images % batch_size or batch_size}
    shares = {
        max(1, rows.stop - rows.start)
        for count in counts
        for rows in (World(rank, world.size).shard_rows(count) for rank in range(world.size))
    }
    return [max(shares), *([1] if 1 in shares and max(shares) > 1 else [])]
