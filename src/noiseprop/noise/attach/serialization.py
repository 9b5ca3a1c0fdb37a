"""Noise alone in a safetensors file: sigma and mu with their places, to be put on weights from elsewhere."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from noiseprop.errors import DataError, InputError, NoisepropError
from noiseprop.files.untrusted import open_tensors, parse_json
from noiseprop.noise.attach.add_noise import check_model, check_sites
from noiseprop.noise.attach.deferred import refuse_waiting
from noiseprop.noise.attach.install import Settings, placed, put
from noiseprop.noise.attach.layouts import layout_of
from noiseprop.noise.attach.noise_specs import Plan
from noiseprop.noise.attach.selectors import Site, before, choose
from noiseprop.noise.layer import Estimator, Granularity, NeuronNoise

_HEADER, _FORMAT = "noise", 1
_LARGEST_FILE = 4 * 2**30  # bytes
_FIELDS: dict[str, Any] = {
    "path": str,
    "before": bool,
    "granularity": get_args(Granularity),
    "estimator": get_args(Estimator),
    "learn": bool,
    "mean": bool,
    "at_inference": bool,
    "batch_dim": range(8),
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def save_noise(model: nn.Module, file: str | Path) -> None:
    """Write the noise that `add_noise` gave a model, without the model: sigma, mu and where they belong.

    Args:
        model: a model with noise.
        file: a safetensors file; it is written aside and renamed, so that it is never half there.

    Raises:
        InputError: the model has no noise from `add_noise`, or noise of a preset, or a sigma that is not finite.
        NoisepropError: the file cannot be written.

    Examples:
        >>> import tempfile, noiseprop
        >>> net = noiseprop.add_noise(nn.Linear(4, 3), [""], init=0.5, example=torch.zeros(1, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_noise(net, Path(folder, "noise.safetensors"))
        ...     other = load_noise(nn.Linear(4, 3), Path(folder, "noise.safetensors"))
        >>> other.noise.sigma.tolist()
        [0.5, 0.5, 0.5]
    """
    refuse_waiting(model)
    layers = placed(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no noise from add_noise, so there is nothing to save")
    tensors: dict[str, Tensor] = {}
    for site, layer in layers:
        if type(layer) is not NeuronNoise:
            raise InputError(f"{site}: {type(layer).__name__} is not saved alone; save the model's state_dict instead")
        for name, tensor in _tensors(site.path, layer).items():
            if not tensor.isfinite().all():
                raise InputError(f"{site}: {name} holds NaN or infinity; train again with a smaller learning rate")
            tensors[name] = tensor
    header = {"format": _FORMAT, "layers": [_describe(site, layer) for site, layer in layers]}
    _write(Path(file), tensors, {_HEADER: json.dumps(header)})


def load_noise(model: nn.Module, file: str | Path, *, key: int = 0) -> nn.Module:
    """Give a model without noise what `save_noise` wrote; no example is needed.

    Args:
        model: one with modules of the same paths and sizes as the model that was saved.
        file: what `save_noise` wrote.
        key: seed of the noise, as in `add_noise`.

    Returns:
        The model itself.

    Raises:
        DataError: the file is missing, damaged, or was not written by `save_noise`.
        InputError: it does not fit the model, or the model has noise already; the model is as it was.
    """
    file = Path(file)
    check_model(model)
    if placed(model):
        raise InputError(f"{type(model).__name__} has noise already; call remove_noise(model) first")
    with _opened(file) as tensors:
        layers = _described(file, tensors)
        sites = [_site(model, fields["path"], at_input=fields["before"]) for fields in layers]
        check_sites(sites)
        values = [_read(file, tensors, site, fields) for site, fields in zip(sites, layers, strict=True)]
    described = list(zip(sites, layers, values, strict=True))
    for settings, group in groupby(described, key=lambda entry: _settings(entry[1], key)):
        plans = [
            Plan(site, tuple(value["sigma"].shape), fields["batch_dim"], _like(model, site))
            for site, fields, value in group
        ]
        put(model, plans, settings)
    for site, _, value in described:
        for name, tensor in value.items():
            getattr(site.module.noise, name).data.copy_(tensor)
    return model


def _describe(site: Site, layer: NeuronNoise) -> dict[str, Any]:
    return {
        "path": site.path,
        "before": site.before,
        "granularity": layer.granularity,
        "estimator": layer.estimator,
        "learn": isinstance(layer.sigma, nn.Parameter),
        "mean": layer.mu is not None,
        "at_inference": layer.at_inference,
        "batch_dim": layer.batch_dim,
    }


def _settings(fields: Mapping[str, Any], key: int) -> Settings:
    kept = {name: fields[name] for name in _FIELDS if name not in ("path", "before")}
    return Settings(key=key, **kept)


def _tensors(path: str, layer: NeuronNoise) -> dict[str, Tensor]:
    values = {"sigma": layer.sigma} if layer.mu is None else {"sigma": layer.sigma, "mu": layer.mu}
    return {_name(path, name): value.detach().contiguous() for name, value in values.items()}


def _name(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _write(file: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, aside, header)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(file)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise NoisepropError(f"{file} could not be written ({error}); free space or choose another folder") from error


@contextmanager
def _opened(file: Path) -> Generator[Any]:
    """The file's tensors, memory-mapped."""
    if not file.is_file():
        raise DataError(f"{file} is missing; write it with save_noise(model, file)")
    if file.stat().st_size > _LARGEST_FILE:
        raise DataError(
            f"{file} has {file.stat().st_size} bytes, more than noise is expected to have ({_LARGEST_FILE})"
        )
    try:
        with open_tensors(file) as tensors:
            yield tensors
    except NoisepropError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{file} is damaged ({error}); write it again with save_noise(model, file)") from error


def _described(file: Path, tensors: Any) -> list[dict[str, Any]]:
    """The file's description of its layers, every field checked."""
    text = (tensors.metadata() or {}).get(_HEADER, "")
    foreign = DataError(f"{file} was not written by save_noise, or is damaged; write it with save_noise(model, file)")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise foreign from error
    if not isinstance(header, dict) or not isinstance(header.get("layers"), list) or not header["layers"]:
        raise foreign
    if header.get("format") != _FORMAT:
        raise DataError(f"{file} has format {header.get('format')!r}, expected {_FORMAT}; use a newer noiseprop")
    layers: list[dict[str, Any]] = header["layers"]
    if not all(_is_layer(layer) for layer in layers) or len({layer["path"] for layer in layers}) < len(layers):
        raise foreign
    wanted = {_name(x["path"], name) for x in layers for name in (("sigma", "mu") if x["mean"] else ("sigma",))}
    if set(tensors.keys()) != wanted:
        odd = sorted(set(tensors.keys()) ^ wanted)[0]
        raise DataError(f"{file} is damaged: {odd} is {'missing' if odd in wanted else 'too much'}; write it again")
    return layers


def _is_layer(fields: Any) -> bool:
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        return False
    for name, allowed in _FIELDS.items():
        value = fields[name]
        of_type = (
            type(value) is allowed if isinstance(allowed, type) else type(value) in (str, int) and value in allowed
        )
        if not of_type:
            return False
    return True


def _site(model: nn.Module, path: str, *, at_input: bool) -> Site:
    sites = choose(model, before([path]) if at_input else [path])
    if [site.path for site in sites] != [path]:
        raise InputError(f"the noise of {path} cannot stand on {sites[0]} of this model; add it with add_noise instead")
    return sites[0]


def _read(file: Path, tensors: Any, site: Site, fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """A layer's sigma and mu; shapes are compared before anything is read."""
    names = ("sigma", "mu") if fields["mean"] else ("sigma",)
    shapes = {tuple(tensors.get_slice(_name(site.path, name)).get_shape()) for name in names}
    shape = shapes.pop()
    if shapes or (fields["granularity"] == "layer" and shape != ()):
        raise DataError(f"{file} is damaged: shapes of {site} do not agree; write it again with save_noise")
    _check_width(site, shape, fields)
    values = {name: tensors.get_tensor(_name(site.path, name)) for name in names}
    for name, value in values.items():
        if value.dtype not in _FLOATS or not value.isfinite().all():
            raise DataError(f"{file}: {name} of {site} holds {value.dtype} or NaN, not finite numbers; write it again")
    return values


def _check_width(site: Site, shape: tuple[int, ...], fields: Mapping[str, Any]) -> None:
    """Compare with how many channels the module has, where its type says it."""
    layout = layout_of(site.module)
    axis, by_channel = fields["batch_dim"], fields["granularity"] == "channel"
    if layout is None or site.before or fields["granularity"] == "layer" or not shape:
        return
    if axis and (layout.channel == 1 or (len(shape) <= axis and not by_channel)):
        return  # the channels may stand anywhere, or have been the batch
    width, after = layout.channels(site.module), layout.after(site.module)
    if by_channel:
        fits = shape[0] == width and set(shape[1:]) <= {1} and after in (None, len(shape) - 1)
    else:
        fits = shape[0 if layout.channel == 1 else -1] == width
    if not fits:
        raise InputError(
            f"{site} has {width} outputs, but the file's sigma has shape {shape}; load it into its own model"
        )


def _like(model: nn.Module, site: Site) -> Tensor:
    return next((p for module in (site.module, model) for p in module.parameters()), torch.empty(()))
