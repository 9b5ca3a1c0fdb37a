"""Trial passes of a model, so that one that cannot be trained or evaluated raises an error before any work is done."""

import copy
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError


def check_pass(
    name: str, model: nn.Module, x: Tensor, classes: int, *, training: bool, allow_more: bool = False
) -> Tensor:
    """Run a model once on images and check its logits; the model's mode, buffers and noise state change.

    Args:
        name: name of the model in error messages.
        model: the model.
        x: images, (B, C, H, W).
        classes: number of classes, C.
        training: whether the pass is in training mode.
        allow_more: accept logits of more classes than the data have.

    Returns:
        Logits, (B, C).

    Raises:
        InputError: the pass fails, or its output is not a tensor of such logits.
    """
    model.train(training)
    shape, mode = tuple(x.shape), " in training mode" if training else ""
    try:
        logits = model(x)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not take images of shape {shape}{mode}: {describe_exception(error)}") from error
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{name} returns {_describe_type(logits)}{mode}, expected a tensor of logits ({len(x)}, {classes}); "
            "let it return the logits alone"
        )
    fits = logits.dim() == 2 and len(logits) == len(x) and logits.shape[1] >= classes
    if not fits or (logits.shape[1] > classes and not allow_more):
        raise InputError(
            f"{name} maps images {shape} to shape {tuple(logits.shape)}{mode}, expected logits ({len(x)}, {classes}) "
            f"for {classes} classes; let its function take `classes`, or choose other data"
        )
    if not logits.is_floating_point():
        raise InputError(f"{name} returns logits of {logits.dtype}{mode}, expected floating point; convert them")
    return logits


def check_training_step(name: str, model: nn.Module, x: Tensor, classes: int, *, allow_more: bool = False) -> None:
    """Run a forward and a backward pass in training mode on a copy of a model, which itself stays as it is.

    Args:
        name: as for `check_pass`, like the other arguments.
        model: the model; where it cannot be copied, the check is skipped.
        x: images.
        classes: number of classes.
        allow_more: as for `check_pass`.

    Raises:
        InputError: as for `check_pass`; or the loss has no gradient.
    """
    trial = copy_model(model)
    if trial is None:
        return
    with torch.random.fork_rng(), torch.enable_grad():
        logits = check_pass(name, trial, x, classes, training=True, allow_more=allow_more)
        try:
            functional.cross_entropy(logits.float(), torch.zeros(len(x), dtype=torch.int64, device=x.device)).backward()
        except Exception as error:
            raise InputError(f"{name} cannot be differentiated: {describe_exception(error)}") from error


def copy_model(model: nn.Module) -> nn.Module | None:
    """Return a deep copy of a model; None if one of its attributes cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return None


def describe_exception(error: Exception) -> str:
    """Return the type and message of an exception from user code, and the line that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    user_frames = [f for f in frames if f.filename.startswith(str(Path.cwd())) and "site-packages" not in f.filename]
    origin = (user_frames or frames or [None])[-1]
    where = f" ({Path(origin.filename).name}, line {origin.lineno})" if origin else ""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{f': {message}' if message else ''}{where}"


def _describe_type(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
