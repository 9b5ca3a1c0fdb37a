"""Weights and training state as safetensors with JSON in the header; nothing is ever unpickled.

The header is sealed, and holds a checksum of the tensors, so that a file that was damaged is told and not used.

`state.safetensors` is one file, so that its rename commits an epoch as a whole: the model's tensors as `model.<name>`,
each optimizer's as `<optimizer>.<parameter's number>.<field>`, and everything that is no tensor in the header.
`model.safetensors` is the model alone, for evaluation.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from noiseprop.errors import RunError
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import add_checksum, hash_tensors, verify_checksum
from noiseprop.files.untrusted import open_tensors, parse_json
from noiseprop.noise.sigma_adam import SigmaAdam
from noiseprop.training.run_folder import MODEL as MODEL
from noiseprop.training.run_folder import STATE as STATE
from noiseprop.training.run_folder import again

_DIGEST = "tensors"
_FIELDS: dict[type[Optimizer], set[str]] = {  # what an optimizer keeps of each parameter that it has moved
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    SigmaAdam: {"step", "h", "v"},
}
_HEADER = "noiseprop"  # one key, so that the file's bytes do not depend on the order of a hash table

_MOST_STEPS = 2**53  # which floats still count


def save_model(model: nn.Module, path: Path, *, epoch: int) -> None:
    """Write the model's parameters and buffers aside and put them at `path`.

    Args:
        model: its state dict is written, the place of its noise with it.
        path: a safetensors file.
        epoch: after which epoch; kept in the file's header.

    Raises:
        RunError: the file cannot be written.
    """
    _write(path, dict(model.state_dict()), {"epoch": epoch})


def load_model(model: nn.Module, path: Path) -> int:
    """Fill a model's parameters and buffers from `save_model`'s file, and return the epoch it was written after.

    Args:
        model: built as the one that was saved, with its noise.
        path: the file.

    Returns:
        The epoch.

    Raises:
        RunError: the file is missing, damaged, or of another network.
    """
    with _opened(path) as (tensors, header):
        epoch = _epoch(path, header)
        weights = _tensors_like(path, tensors, model.state_dict(), prefix="")
    model.load_state_dict(weights)
    return epoch


def read_epoch(path: Path) -> int:
    """The epoch after which `save_model` wrote a file.

    Raises:
        RunError: the file is missing, damaged, or not a model's.
    """
    with _opened(path) as (_, header):
        return _epoch(path, header)


def save_state(path: Path, model: nn.Module, optimizers: Mapping[str, Optimizer], *, epoch: int) -> None:
    """Write all that a training needs to go on after `epoch` to one file.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    scalars: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        for number, fields in optimizer.state_dict()["state"].items():
            for field, value in fields.items():
                (tensors if isinstance(value, Tensor) else scalars)[f"{name}.{number}.{field}"] = value
    _write(path, tensors, {"epoch": epoch, "scalars": scalars})


def load_state(path: Path, model: nn.Module, optimizers: Mapping[str, Optimizer]) -> int:
    """Put a model and its optimizers back to where `save_state` left them, and return the epoch.

    The optimizers' settings (learning rate and so on) are not in the file; they come from the recipe.

    Raises:
        RunError: the file is damaged or of another network; model and optimizers are then unchanged.
    """
    with _opened(path) as (tensors, header):
        epoch = _epoch(path, header)
        weights = _tensors_like(path, tensors, model.state_dict(), prefix="model.")
        states = {name: _optimizer_state(path, tensors, header, name, optimizers[name]) for name in optimizers}
    model.load_state_dict(weights)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[name], "param_groups": optimizer.state_dict()["param_groups"]})
    return epoch


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    contiguous = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    whole = add_checksum({**header, _DIGEST: hash_tensors(contiguous)})
    metadata = {_HEADER: json.dumps(whole, sort_keys=True)}

    def write(aside: Path) -> None:
        try:
            save_file(contiguous, aside, metadata)
        except SafetensorError as error:  # so it reports a full disk
            raise OSError(0, str(error)) from error

    write_aside(path, write)


@contextmanager
def _opened(path: Path) -> Generator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """The file's tensors, memory-mapped, and its header, all found undamaged."""
    if not path.is_file():
        raise RunError(
            f"{path} is missing: the run has not finished its first epoch, or lost it; go on with "
            f"`noiseprop train --resume --out {path.parent}`"
        )
    try:
        with open_tensors(path) as file:
            header = verify_checksum(_header(path, file))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in sorted(file.keys())}
            _check_digest(header.pop(_DIGEST, None), tensors)
            yield tensors, header
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); {_remedy(path)}") from error


def _check_digest(digest: object, tensors: Mapping[str, Tensor]) -> None:
    if digest not in (None, hash_tensors(tensors)):  # None: of an older version
        raise ValueError("the checksum of its tensors does not fit")


def _remedy(path: Path) -> str:
    """What to do about a damaged file; the checkpoint holds the model too."""
    if path.name == MODEL and (path.parent / STATE).is_file():
        return f"make it again with `noiseprop train --resume --out {path.parent}`"
    return again(path.parent)


def _foreign(path: Path, why: str) -> RunError:
    return RunError(f"{path} was not written by noiseprop, or is damaged: {why}; {_remedy(path)}")


def _header(path: Path, file: Any) -> dict[str, Any]:
    try:
        header = parse_json((file.metadata() or {})[_HEADER])
    except (KeyError, ValueError) as error:
        raise _foreign(path, f"its header lacks {_HEADER!r}") from error
    if not isinstance(header, dict) or not isinstance(header.get("scalars", {}), dict):
        raise _foreign(path, "its header has another form")
    return header


def _epoch(path: Path, header: Mapping[str, Any]) -> int:
    epoch = header.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise _foreign(path, "its header names no epoch")
    return epoch


def _tensors_like(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """Tensors `prefix + name` of exactly the names, shapes and dtypes of `expected`."""
    names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if names != set(expected):
        odd = sorted(names ^ set(expected))
        where = "is missing" if odd[0] in expected else "is too much"
        raise RunError(f"{path} is of another network: {odd[0]} {where}; build the model with the run's settings")
    return {name: _like(path, prefix + name, tensors[prefix + name], tensor) for name, tensor in expected.items()}


def _like(path: Path, name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of one tensor, in the memory layout, dtype and device of `like`."""
    if tensor.shape != like.shape:
        came, expected = tuple(tensor.shape), tuple(like.shape)
        raise RunError(f"{path} is of another network: {name} has shape {came}, expected {expected}")
    if tensor.dtype != like.dtype:
        raise RunError(f"{path} is of another network: {name} is {tensor.dtype}, expected {like.dtype}")
    if not tensor.isfinite().all():
        raise _foreign(path, f"{name} holds NaN or infinity")
    return torch.empty_like(like).copy_(tensor)


def _optimizer_state(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], name: str, optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """The `state` part of an optimizer's state_dict; every tensor is a scalar or as large as its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        owner, _, rest = key.partition(".")
        number, _, field = rest.partition(".")
        if owner != name:
            continue
        if not (number.isdecimal() and int(number) < len(parameters)):
            raise RunError(f"{path} is of another network: {key} belongs to none of {len(parameters)} parameters")
        parameter = parameters[int(number)]
        like = torch.empty(()) if field == "step" else parameter.detach()
        value = _like(path, key, tensor, like)
        if field == "step" and not 0 <= value.item() < _MOST_STEPS:
            raise _foreign(path, f"{key} is {value.item():g}")
        state.setdefault(int(number), {})[field] = value
    for key, value in header.get("scalars", {}).items():
        owner, number, field = key.split(".", 2)
        if owner == name:
            if type(value) is not int or not 0 <= value < _MOST_STEPS:
                raise _foreign(path, f"{key} is {value!r}")
            state.setdefault(int(number), {})[field] = value
    _check_fields(path, name, optimizer, state)
    return state


def _check_fields(path: Path, name: str, optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuse a state that the optimizer's next step would fail on."""
    wanted = _FIELDS.get(type(optimizer))
    for number, fields in state.items():
        if wanted is not None and set(fields) != wanted:
            told = ", ".join(sorted(fields))
            raise _foreign(path, f"{name} has {told} of parameter {number}, expected {', '.join(sorted(wanted))}")
