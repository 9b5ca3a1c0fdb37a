"""Save noise alone in a safetensors file: sigma, mu and their sites, to be loaded into a model with other weights."""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from noiseprop.errors import DataError, InputError, NoisepropError
from noiseprop.files.records import convert_record
from noiseprop.files.tensors import write_tensors
from noiseprop.files.untrusted import open_tensors, parse_json
from noiseprop.noise.attach.add_noise import check_plain_model, check_sites_are_free
from noiseprop.noise.attach.deferred import check_noise_exists
from noiseprop.noise.attach.install import LayerOptions, find_installed, install_noise
from noiseprop.noise.attach.layouts import get_layout
from noiseprop.noise.attach.noise_specs import NoiseSpec
from noiseprop.noise.attach.selectors import Site, before, select_sites
from noiseprop.noise.layer import Estimator, Granularity, NeuronNoise

_HEADER, _FORMAT = "noise", 1
_MAX_FILE_SIZE = 4 * 2**30  # bytes
_COMPILED = "_orig_mod"  # the attribute in which torch.compile keeps the plain module
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class LayerRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Site and options of one noise layer, as the file describes them; the fields are those of `add_noise`."""

    path: str
    before: bool
    granularity: Granularity
    estimator: Estimator
    learn: bool
    mean: bool
    at_inference: bool
    batch_dim: Annotated[int, msgspec.Meta(ge=0, le=7)]

    @property
    def tensor_names(self) -> dict[str, str]:
        """Return the names in the file of the layer's tensors, by their names in the layer."""
        names = ("sigma", "mu") if self.mean else ("sigma",)
        return {name: f"{self.path}.{name}" if self.path else name for name in names}


class NoiseRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Header of a noise file."""

    format: int
    layers: Annotated[list[LayerRecord], msgspec.Meta(min_length=1)]


def save_noise(model: nn.Module, file: str | Path) -> None:
    """Save the noise that `add_noise` added to a model, without the model: sigma, mu and their sites.

    Args:
        model: a model with noise; it may be wrapped by torch.compile, DataParallel or AveragedModel.
        file: a safetensors file, written atomically.

    Raises:
        InputError: the model has no noise from `add_noise`, or noise of a baseline, or a sigma that is not finite.
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
    model = _unwrap_model(model)
    check_noise_exists(model)
    layers = find_installed(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no noise from add_noise to save; call add_noise first")
    tensors: dict[str, Tensor] = {}
    records: list[LayerRecord] = []
    for site, layer in layers:
        if type(layer) is not NeuronNoise:
            raise InputError(f"{site}: {type(layer).__name__} is not saved alone; save the model's state_dict instead")
        record = _describe_layer(site, layer)
        for name, stored in record.tensor_names.items():
            value = getattr(layer, name).detach().contiguous().clone()  # sigmas may be tied
            if not value.isfinite().all():
                raise InputError(f"{site}: {name} holds NaN or infinity; train again with a smaller learning rate")
            tensors[stored] = value
        records.append(record)
    header = msgspec.json.encode(NoiseRecord(format=_FORMAT, layers=records)).decode()
    write_tensors(Path(file), tensors, {_HEADER: header})


def load_noise(model: nn.Module, file: str | Path, *, key: int = 0) -> nn.Module:
    """Add the noise in a file of `save_noise` to a model without noise; no example is needed.

    Args:
        model: a plain model with modules of the same paths and sizes as the saved one.
        file: a file that `save_noise` wrote.
        key: seed of the noise, as in `add_noise`.

    Returns:
        The model itself.

    Raises:
        DataError: the file is missing, damaged, or was not written by `save_noise`.
        InputError: the file does not fit the model, or the model has noise already; the model is unchanged.
    """
    file = Path(file)
    check_plain_model(model)
    if find_installed(model):
        raise InputError(f"{type(model).__name__} has noise already; call remove_noise(model) first")
    with _open_noise_file(file) as tensors:
        records = _read_layers(file, tensors)
        sites = [_find_site(model, record.path, at_input=record.before) for record in records]
        check_sites_are_free(sites)
        values = [_read_values(file, tensors, site, record) for site, record in zip(sites, records, strict=True)]
    layers = list(zip(sites, records, values, strict=True))
    for options, group in groupby(layers, key=lambda entry: _make_options(entry[1], key)):
        specs = [
            NoiseSpec(site, tuple(value["sigma"].shape), record.batch_dim, _find_reference_tensor(model, site))
            for site, record, value in group
        ]
        install_noise(model, specs, options)
    for site, _, value in layers:
        for name, tensor in value.items():
            getattr(site.module.noise, name).data.copy_(tensor)
    return model


def _unwrap_model(model: nn.Module) -> nn.Module:
    """Return the plain model inside wrappers of torch, such as those of torch.compile and DataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(inner := getattr(model, _COMPILED, None), nn.Module):
            model = inner
        else:
            return model


def _describe_layer(site: Site, layer: NeuronNoise) -> LayerRecord:
    return LayerRecord(
        path=".".join(part for part in site.path.split(".") if part != _COMPILED),  # a compiled part of the model
        before=site.before,
        granularity=layer.granularity or "neuron",
        estimator=layer.estimator,
        learn=isinstance(layer.sigma, nn.Parameter),
        mean=layer.mu is not None,
        at_inference=layer.at_inference,
        batch_dim=layer.batch_dim,
    )


def _make_options(record: LayerRecord, key: int) -> LayerOptions:
    return LayerOptions(
        granularity=record.granularity,
        learn=record.learn,
        mean=record.mean,
        at_inference=record.at_inference,
        key=key,
        batch_dim=record.batch_dim,
        estimator=record.estimator,
    )


@contextmanager
def _open_noise_file(file: Path) -> Generator[Any]:
    """Yield the file's tensors, memory-mapped."""
    if not file.is_file():
        raise DataError(f"{file} is missing; write it with save_noise(model, file)")
    if file.stat().st_size > _MAX_FILE_SIZE:
        raise DataError(f"{file} has {file.stat().st_size} bytes, expected at most {_MAX_FILE_SIZE} for noise")
    try:
        with open_tensors(file) as tensors:
            yield tensors
    except NoisepropError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{file} is damaged ({error}); write it again with save_noise(model, file)") from error


def _read_layers(file: Path, tensors: Any) -> list[LayerRecord]:
    """Return the file's description of its layers, with every field checked."""
    foreign = DataError(f"{file} was not written by save_noise, or is damaged; write it with save_noise(model, file)")
    try:
        header = parse_json((tensors.metadata() or {}).get(_HEADER, ""))
        if isinstance(header, dict) and "layers" in header and header.get("format") != _FORMAT:
            raise DataError(f"{file} has format {header.get('format')!r}, expected {_FORMAT}; use a newer noiseprop")
        layers = convert_record(header, NoiseRecord).layers
    except ValueError as error:
        raise foreign from error
    if len({layer.path for layer in layers}) < len(layers):
        raise foreign
    expected = {name for layer in layers for name in layer.tensor_names.values()}
    if set(tensors.keys()) != expected:
        name = sorted(set(tensors.keys()) ^ expected)[0]
        state = "missing" if name in expected else "not expected"
        raise DataError(f"{file} is damaged: {name} is {state}; write it again with save_noise(model, file)")
    return layers


def _find_site(model: nn.Module, path: str, *, at_input: bool) -> Site:
    sites = select_sites(model, before([path]) if at_input else [path])
    if [site.path for site in sites] != [path]:
        raise InputError(f"the noise of {path} cannot be added to {sites[0]} of this model; use add_noise instead")
    return sites[0]


def _read_values(file: Path, tensors: Any, site: Site, record: LayerRecord) -> dict[str, Tensor]:
    """Return a layer's sigma and mu; shapes are compared before any data is read."""
    shapes = {tuple(tensors.get_slice(name).get_shape()) for name in record.tensor_names.values()}
    shape = shapes.pop()
    if shapes or (record.granularity == "layer" and shape != ()):
        raise DataError(f"{file} is damaged: shapes of {site} do not agree; write it again with save_noise")
    _check_layer_width(site, shape, record)
    values = {name: tensors.get_tensor(stored) for name, stored in record.tensor_names.items()}
    for name, value in values.items():
        if value.dtype not in _FLOATS or not value.isfinite().all():
            raise DataError(
                f"{file}: {name} of {site} has type {value.dtype} or holds NaN, expected finite numbers; "
                "write it again with save_noise"
            )
    return values


def _check_layer_width(site: Site, shape: tuple[int, ...], record: LayerRecord) -> None:
    """Compare the shape of sigma with the module's number of channels, if its type declares one."""
    layout = get_layout(site.module)
    axis, by_channel = record.batch_dim, record.granularity == "channel"
    if layout is None or site.before or record.granularity == "layer" or not shape:
        return
    if axis and (layout.channel == 1 or (len(shape) <= axis and not by_channel)):
        return  # the channels may be on any axis, or may have been the batch
    width, after = layout.channels(site.module), layout.after(site.module)
    if by_channel:
        fits = shape[0] == width and set(shape[1:]) <= {1} and after in (None, len(shape) - 1)
    else:
        fits = shape[0 if layout.channel == 1 else -1] == width
    if not fits:
        raise InputError(
            f"{site} has {width} outputs, but the file's sigma has shape {shape}; load it into its own model"
        )


def _find_reference_tensor(model: nn.Module, site: Site) -> Tensor:
    """Return a tensor with the device and dtype for sigma."""
    return next((p for module in (site.module, model) for p in module.parameters()), torch.empty(()))
