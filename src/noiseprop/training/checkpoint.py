"""Weights and training state as safetensors with a JSON header; nothing is ever unpickled.

The header has a checksum and holds that of the tensors, so that a damaged file is reported and never used.

`state.safetensors` is one file, so that its rename commits an epoch as a whole. It holds the tensors of the model as
`model.<name>`, those of each optimizer as `<optimizer>.<number of the parameter>.<field>`, and the numbers of the
optimizers in the header. `model.safetensors` holds the model alone, for evaluation.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noiseprop.errors import RunError
from noiseprop.files.checksum import hash_tensors
from noiseprop.files.records import format_record, parse_record
from noiseprop.files.tensors import write_tensors
from noiseprop.files.untrusted import open_tensors
from noiseprop.noise.sigma_adam import SigmaAdam
from noiseprop.training.run_folder import MODEL, STATE, suggest_retraining

_HEADER_KEY = "noiseprop"  # a single key, so that the bytes of the file do not depend on the order of a hash table
_FIELDS: dict[type[Optimizer], set[str]] = {  # state of an optimizer for each parameter that it has moved
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    SigmaAdam: {"step", "h", "v"},
}
_MAX_STEPS = 2**53  # largest count that a float holds exactly


class CheckpointHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a checkpoint.

    Attributes:
        epoch: number of finished epochs.
        tensors: SHA-256 of all tensors, see `hash_tensors`.
        scalars: numbers of the optimizers, by the names of `state.safetensors`.
    """

    epoch: Annotated[int, msgspec.Meta(ge=0, le=10**6)]
    tensors: str
    scalars: dict[str, Annotated[int, msgspec.Meta(ge=0, lt=_MAX_STEPS)]] = {}


def save_model(model: nn.Module, path: Path, *, epoch: int) -> None:
    """Write a model's parameters and buffers to a file, atomically.

    Args:
        model: model whose state dict is written, including the state of its noise.
        path: safetensors file.
        epoch: number of finished epochs, recorded in the header.

    Raises:
        RunError: the file cannot be written.
    """
    _write_checkpoint(path, dict(model.state_dict()), epoch)


def load_model(model: nn.Module, path: Path) -> int:
    """Fill a model's parameters and buffers from a file of `save_model`, and return its epoch.

    Args:
        model: model built like the saved one, including its noise.
        path: the file.

    Returns:
        Number of finished epochs.

    Raises:
        RunError: the file is missing, damaged, or belongs to another network.
    """
    with _open_checkpoint(path) as (tensors, header):
        weights = _match_tensors(path, tensors, model, prefix="")
    model.load_state_dict(weights)
    return header.epoch


def read_epoch(path: Path) -> int:
    """Return the number of finished epochs that a file of `save_model` records.

    Raises:
        RunError: the file is missing or damaged.
    """
    with _open_checkpoint(path) as (_, header):
        return header.epoch


def save_state(path: Path, model: nn.Module, optimizers: Mapping[str, Optimizer], *, epoch: int) -> None:
    """Write everything that a training needs to resume after `epoch` to one file.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    scalars: dict[str, int] = {}
    for name, optimizer in optimizers.items():
        for number, fields in optimizer.state_dict()["state"].items():
            for field, value in fields.items():
                (tensors if isinstance(value, Tensor) else scalars)[f"{name}.{number}.{field}"] = value
    _write_checkpoint(path, tensors, epoch, scalars)


def load_state(path: Path, model: nn.Module, optimizers: Mapping[str, Optimizer]) -> int:
    """Restore a model and its optimizers from a file of `save_state`, and return its epoch.

    Settings of the optimizers, such as the learning rate, are not in the file; they come from the recipe.

    Raises:
        RunError: the file is damaged or belongs to another network; model and optimizers are then unchanged.
    """
    with _open_checkpoint(path) as (tensors, header):
        weights = _match_tensors(path, tensors, model, prefix="model.")
        states = {name: _read_optimizer_state(path, tensors, header, name, optimizers[name]) for name in optimizers}
    model.load_state_dict(weights)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[name], "param_groups": optimizer.state_dict()["param_groups"]})
    return header.epoch


def _write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], epoch: int, scalars: Mapping[str, int] | None = None
) -> None:
    separate = _separate_tensors(tensors)
    header = CheckpointHeader(epoch, hash_tensors(separate), dict(scalars or {}))
    metadata = {_HEADER_KEY: format_record(header)}
    write_tensors(path, separate, metadata)


def _separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors by name, in order; tensors that share memory, such as tied weights, are copied."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return separate


@contextmanager
def _open_checkpoint(path: Path) -> Generator[tuple[dict[str, Tensor], CheckpointHeader]]:
    """Open a file and yield its memory-mapped tensors and its header, after checking both."""
    if not path.is_file():
        raise RunError(
            f"{path} is missing: the run has not finished its first epoch, or lost the file; resume it with "
            f"`noiseprop train --resume --out {path.parent}`"
        )
    try:
        with open_tensors(path) as file:
            header = _read_header(path, file)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in sorted(file.keys())}
            _check_tensor_hash(header, tensors)
            yield tensors, header
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); {_suggest_remedy(path)}") from error


def _check_tensor_hash(header: CheckpointHeader, tensors: Mapping[str, Tensor]) -> None:
    if header.tensors != hash_tensors(tensors):
        raise ValueError("the checksum of its tensors does not match")


def _read_header(path: Path, file: Any) -> CheckpointHeader:
    metadata = file.metadata() or {}
    if _HEADER_KEY not in metadata:
        raise _make_damage_error(path, f"its header lacks {_HEADER_KEY!r}")
    return parse_record(metadata[_HEADER_KEY], CheckpointHeader)


def _suggest_remedy(path: Path) -> str:
    """Return the next step for a damaged file; the checkpoint holds the model, too."""
    if path.name == MODEL and (path.parent / STATE).is_file():
        return f"make it again with `noiseprop train --resume --out {path.parent}`"
    return suggest_retraining(path.parent)


def _make_damage_error(path: Path, reason: str) -> RunError:
    return RunError(f"{path} was not written by noiseprop, or is damaged: {reason}; {_suggest_remedy(path)}")


def _list_trained_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that are trained, under each name that they have."""
    return {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}


def _match_tensors(path: Path, tensors: Mapping[str, Tensor], model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the tensors `prefix + name` for all names of a model's state, with its shapes and dtypes."""
    expected: dict[str, Tensor] = model.state_dict()
    names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if names != set(expected):
        odd = sorted(names ^ set(expected))
        problem = "is missing" if odd[0] in expected else "is unknown"
        raise RunError(
            f"{path} belongs to another network: {odd[0]} {problem}; build the model with the settings of the run"
        )
    trained = _list_trained_names(model)
    return {
        name: _match_tensor(path, prefix + name, tensors[prefix + name], like, is_finite=name in trained)
        for name, like in expected.items()
    }


def _match_tensor(path: Path, name: str, tensor: Tensor, like: Tensor, *, is_finite: bool = True) -> Tensor:
    """Return a copy of one tensor in the memory layout, dtype and device of `like`."""
    if tensor.shape != like.shape:
        got, expected = tuple(tensor.shape), tuple(like.shape)
        raise RunError(f"{path} belongs to another network: {name} has shape {got}, expected {expected}")
    if tensor.dtype != like.dtype:
        raise RunError(f"{path} belongs to another network: {name} is {tensor.dtype}, expected {like.dtype}")
    if is_finite and not tensor.isfinite().all():
        raise _make_damage_error(path, f"{name} holds NaN or infinity")
    return torch.empty_like(like).copy_(tensor)


def _read_optimizer_state(
    path: Path, tensors: Mapping[str, Tensor], header: CheckpointHeader, name: str, optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """Return the `state` part of an optimizer's state_dict; a tensor is a scalar or as large as its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key in (*tensors, *header.scalars):
        owner, _, rest = key.partition(".")
        number, _, field = rest.partition(".")
        if owner != name:
            continue
        if not (number.isdecimal() and int(number) < len(parameters)):
            raise RunError(f"{path} belongs to another network: {key} belongs to none of {len(parameters)} parameters")
        value: Tensor | int
        if key in tensors:
            like = torch.empty(()) if field == "step" else parameters[int(number)].detach()
            value = _match_tensor(path, key, tensors[key], like)
            if field == "step" and not 0 <= value.item() < _MAX_STEPS:
                raise _make_damage_error(path, f"{key} is {value.item():g}")
        else:
            value = header.scalars[key]
        state.setdefault(int(number), {})[field] = value
    _check_optimizer_fields(path, name, optimizer, state)
    return state


def _check_optimizer_fields(
    path: Path, name: str, optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]
) -> None:
    """Raise a RunError for a state that would fail in the optimizer's next step."""
    expected = _FIELDS.get(type(optimizer))
    for number, fields in state.items():
        if expected is not None and set(fields) != expected:
            found = ", ".join(sorted(fields))
            raise _make_damage_error(
                path, f"{name} has {found} for parameter {number}, expected {', '.join(sorted(expected))}"
            )
