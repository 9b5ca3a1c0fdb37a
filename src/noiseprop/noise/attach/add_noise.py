"""Add noise to a model in place, and remove it again."""

# torch has no public way to ask whether model.compile() was called:
# pyright: reportPrivateUsage=false

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from noiseprop.errors import InputError
from noiseprop.noise.attach.deferred import DeferredNoise, check_noise_exists, remove_deferred_noise
from noiseprop.noise.attach.install import LayerOptions, get_own_scope, install_noise, uninstall_noise
from noiseprop.noise.attach.noise_specs import NoiseSpec, specify_from_probe, specify_from_types
from noiseprop.noise.attach.probe import get_batch_size, probe_model, split_example
from noiseprop.noise.attach.selectors import Site, Where, select_sites
from noiseprop.noise.layer import Estimator, Granularity, Init, NeuronNoise, is_level
from noiseprop.noise.stream import draw_seed


def add_noise(
    model: nn.Module,
    where: Where = "all",
    *,
    granularity: Granularity = "neuron",
    init: Init = 1.0,
    learn: bool = True,
    mean: bool = False,
    at_inference: bool = True,
    example: Any = None,
    key: int | None = 0,
    batch_dim: int = 0,
    estimator: Estimator = "pathwise",
    same_on_all_ranks: bool = False,
) -> nn.Module:
    """Add learned noise to a model in place: ``y + mu + sigma * eps`` on the outputs y of the modules in `where`.

    Each of these modules gets a forward hook and a child module `noise`, a `NeuronNoise`, whose parameter is named
    `<path>.noise.sigma`. The class of the module, its parameters and its call signature stay. A second call adds noise
    to further modules. If the output is a tuple or dict, its first tensor gets the noise. If the module is an RNN, the
    output sequence and the last hidden states do. Noise on an `nn.Sequential` is added to its last module.

    Args:
        model: any module; add noise before `torch.compile` and DistributedDataParallel, and before making optimizers.
        where: "linear", "conv", "recurrent", "attention" or "all" of these; a module's path, or wildcards that match
            whole paths ("encoder.*.linear?"); a module type; a sequence of paths and types; a predicate
            (path, module) -> bool; or `before(...)` any of these, for noise on the inputs of these modules.
        granularity: a sigma for each "neuron" of the example's shape, for each "channel" (at any input size), or one
            for the whole "layer".
        init: initial sigma, in units of the output: one number, or "normal" for draws from N(0, 1) seeded with `key`.
        learn: whether sigma is a parameter; otherwise it is a buffer with a fixed value.
        mean: whether a mean mu is learned too.
        at_inference: whether noise acts in eval mode too. `sampling(model, "off")` silences it anyway.
        example: inputs to call the model with once, in eval mode, to find the shapes: a tensor, a tuple of arguments or
            a dict of keyword arguments. If omitted, the sizes that the modules declare are used where they suffice
            ("channel" and "layer"). Otherwise noise is added at the model's first call, and sigma does not exist
            before.
        key: seed of the noise. Models need different keys for independent noise; None draws one from torch's global
            generator.
        batch_dim: axis of the batch in the outputs, such as 1 in time-first models. It is found automatically for
            RNNs, attention and the layers of nn.Transformer.
        estimator: "pathwise" is Eq. 3. "likelihood-ratio" needs no derivative of the layers after the noise, but
            requires `likelihood_ratio_loss`.
        same_on_all_ranks: whether all processes of a torch.distributed job draw the same noise. By default the samples
            of each process have independent noise, as in one process with the whole batch if the loader shards it in
            order and evenly.

    Returns:
        The model itself.

    Raises:
        InputError: no module matches, or a match cannot carry noise or has noise already; the model is unchanged.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net = add_noise(net, "linear", init=0.5, example=torch.zeros(1, 4))
        >>> {path: tuple(noise.sigma.shape) for path, noise in noise_layers(net).items()}
        {'0.noise': (3,), '2.noise': (2,)}
        >>> is_noisy(remove_noise(net))
        False

    Source: Xiao, Zhang and Peng (2021), Eq. 1.
    """
    options = LayerOptions(
        granularity,
        init,
        learn,
        mean,
        at_inference,
        draw_seed() if key is None else _parse_integer("key", key),
        _parse_integer("batch_dim", batch_dim),
        estimator,
        same_on_all_ranks=same_on_all_ranks,
    )
    return place_noise(model, where, options, example)


def place_noise(model: nn.Module, where: Where, options: LayerOptions, example: Any) -> nn.Module:
    """Add noise as `add_noise` does, with layers that `options.make_layer` creates."""
    check_plain_model(model)
    sites = select_sites(model, where)
    check_sites_are_free(sites)
    _check_options(options, sites[0])
    get_own_scope(model)
    if example is not None:
        install_noise(model, _specify_by_probe(model, sites, options, *split_example(example)), options)
    elif (specs := specify_from_types(model, sites, options.granularity, options.batch_dim)) is not None:
        install_noise(model, specs, options)
    else:
        DeferredNoise(partial(_install_from_first_batch, where=where, options=options)).register_on(model)
    return model


def remove_noise(model: nn.Module) -> nn.Module:
    """Remove all that `add_noise` added to a model; a model without noise stays as it is.

    Args:
        model: the model that `add_noise` was called with.

    Returns:
        The model itself.

    Raises:
        InputError: the noise was added to a larger model or to a part of this one; remove it there.

    Examples:
        >>> net = add_noise(nn.Linear(4, 3), [""], example=torch.zeros(1, 4))
        >>> list(net.state_dict()), list(remove_noise(net).state_dict())
        (['weight', 'bias', 'noise.sigma', 'noise.key'], ['weight', 'bias'])
    """
    remove_deferred_noise(model)
    check_noise_exists(model)  # raises if a part of the model has deferred noise
    uninstall_noise(model)
    return model


def noise_layers(model: nn.Module) -> dict[str, NeuronNoise]:
    """Return the noise layers of a model by module path, such as "fc1.noise".

    Args:
        model: any module, noisy or not.

    Returns:
        The layers in the order of the model's modules, with the learned tensors `sigma` and `mu`.

    Raises:
        InputError: the noise is deferred until a first batch.

    Examples:
        >>> net = add_noise(nn.Sequential(nn.Linear(4, 3)), "0", example=torch.zeros(1, 4))
        >>> {path: layer.sigma.mean().item() for path, layer in noise_layers(net).items()}
        {'0.noise': 1.0}
    """
    check_noise_exists(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, NeuronNoise)}


def is_noisy(model: nn.Module) -> bool:
    """Return whether a model has any noise layer, acting or not.

    Raises:
        InputError: the noise is deferred until a first batch.
    """
    return bool(noise_layers(model))


def _install_from_first_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, where: Where, options: LayerOptions
) -> None:
    """Install deferred noise in a model at its first batch, whose own pass is noisy already."""
    sites = select_sites(model, where)
    check_sites_are_free(sites)
    install_noise(model, _specify_by_probe(model, sites, options, args, kwargs), options).begin()


def _specify_by_probe(
    model: nn.Module, sites: Sequence[Site], options: LayerOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[NoiseSpec]:
    seen = probe_model(model, sites, args, kwargs)
    samples = get_batch_size(args, kwargs, options.batch_dim)
    return specify_from_probe(model, sites, seen, options.granularity, options.batch_dim, samples)


def _parse_integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"add_noise got {name}={value!r}; pass an integer") from None


def _check_options(options: LayerOptions, site: Site) -> None:
    if options.granularity not in ("neuron", "channel", "layer"):
        raise InputError(f"add_noise got granularity={options.granularity!r}; choose 'neuron', 'channel' or 'layer'")
    if options.init != "normal" and not is_level(options.init):
        raise InputError(f"{site}: add_noise got init={options.init!r}; pass a finite number, or 'normal' for N(0, 1)")
    if options.estimator not in ("pathwise", "likelihood-ratio"):
        raise InputError(f"add_noise got estimator={options.estimator!r}; choose 'pathwise' or 'likelihood-ratio'")
    if options.batch_dim < 0:
        raise InputError(f"{site}: add_noise got batch_dim={options.batch_dim}; pass 0 or more")


def check_plain_model(model: nn.Module) -> None:
    """Raise an InputError where a model is wrapped, compiled, or has tensors without values."""
    check_noise_exists(model)
    name = type(model).__name__
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise InputError(f"{name} is wrapped or compiled already; call add_noise on the plain model first")
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"{path} has no shape yet, because {name} has lazy modules; call the model once, then add_noise"
            )
        if tensor.is_meta:
            raise InputError(f"{path} is on the meta device and has no values; load the weights, then call add_noise")


def check_sites_are_free(sites: Sequence[Site]) -> None:
    """Raise an InputError where a module has noise already, or another attribute of that name."""
    for site in sites:
        if isinstance(getattr(site.module, "noise", None), NeuronNoise):
            raise InputError(f"{site} has noise already; call remove_noise(model) first, or select other modules")
        if hasattr(site.module, "noise"):
            raise InputError(
                f"{site} already has an attribute `noise`, the name of the noise layer; select the module inside it "
                "that computes the output, or one after it"
            )
