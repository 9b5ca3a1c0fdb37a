"""``add_noise``: give a model noise where it stands, and take it away again."""

# torch keeps to itself whether model.compile() was called:
# pyright: reportPrivateUsage=false

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from noiseprop.errors import InputError
from noiseprop.noise.attach.deferred import FirstBatch, forget_first_batch, refuse_waiting
from noiseprop.noise.attach.install import Settings, own_stream, put, take_away
from noiseprop.noise.attach.noise_specs import Plan, plan_seen, plan_unseen
from noiseprop.noise.attach.probe import as_call, batch_size, probe
from noiseprop.noise.attach.selectors import Site, Where, choose
from noiseprop.noise.layer import Estimator, Granularity, Init, NeuronNoise, is_level


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
    key: int = 0,
    batch_dim: int = 0,
    estimator: Estimator = "pathwise",
) -> nn.Module:
    """Give a model learned noise, in place: ``y + mu + sigma * eps`` on the outputs y of the modules that `where` says.

    Each of them gets a forward hook and a child module `noise`, a `NeuronNoise`, so parameters `<path>.noise.sigma`
    join the model's. Its class, its own parameters and their names, and how it is called stay. A second call adds noise
    to further modules. Of a tuple or dict the first tensor gets the noise; of an RNN, the output sequence and with it
    the last hidden states. The noise of an `nn.Sequential` stands on its last module.

    Args:
        model: any module; add noise before `torch.compile` and DistributedDataParallel, and before making optimizers.
        where: "linear", "conv", "recurrent", "attention" or "all" of these; a module's path, or wildcards that fit
            whole paths ("encoder.*.linear?"); a module type; a sequence of paths and types; a predicate
            (path, module) -> bool; or `before(...)` any of these: noise on what these modules are called with.
        granularity: a sigma for each "neuron" of the example's shape, for each "channel" (at any input size), or one
            for the whole "layer".
        init: sigma's start, in units of the output: one number, or "normal" for draws from N(0, 1) seeded with `key`.
        learn: whether sigma is a parameter, or a buffer that stays as it is.
        mean: whether a mean mu is learned too.
        at_inference: whether noise acts in eval mode too. `sampling(model, "off")` silences it anyway.
        example: inputs to call the model with once, in eval mode, to see the shapes: a tensor, a tuple of arguments or
            a dict of them by name. If omitted, the modules' own sizes are taken where they suffice ("channel" and
            "layer"); where they do not, noise is added when the model is first called, and sigma does not exist before.
        key: seed of the noise. Models whose noise shall be independent need different keys.
        batch_dim: axis of the batch in the outputs, such as 1 in time-first models. RNNs, attention and the layers of
            nn.Transformer know theirs.
        estimator: "pathwise" is Eq. 3; "likelihood-ratio" needs no derivative of what follows the noise, but wants
            `likelihood_ratio_loss` to be back-propagated.

    Returns:
        The model itself.

    Raises:
        InputError: nothing matches, what matches cannot carry noise or has noise already; the model is as it was.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net = add_noise(net, "linear", init=0.5, example=torch.zeros(1, 4))
        >>> {path: tuple(noise.sigma.shape) for path, noise in noise_layers(net).items()}
        {'0.noise': (3,), '2.noise': (2,)}
        >>> is_noisy(remove_noise(net))
        False

    Source: Xiao, Zhang and Peng (2021), Eq. 1.
    """
    settings = Settings(
        granularity, init, learn, mean, at_inference, _whole("key", key), _whole("batch_dim", batch_dim), estimator
    )
    return place(model, where, settings, example)


def place(model: nn.Module, where: Where, settings: Settings, example: Any) -> nn.Module:
    """Do what `add_noise` says, with noise layers that `settings.make` makes."""
    check_model(model)
    sites = choose(model, where)
    check_sites(sites)
    _check_settings(settings, sites[0])
    own_stream(model)
    if example is not None:
        put(model, _plan_by_probe(model, sites, settings, *as_call(example)), settings)
    elif (plans := plan_unseen(model, sites, settings.granularity, settings.batch_dim)) is not None:
        put(model, plans, settings)
    else:
        FirstBatch(partial(_attach_and_begin, where=where, settings=settings)).wait(model)
    return model


def remove_noise(model: nn.Module) -> nn.Module:
    """Take away all that `add_noise` added to a model, which is then as it was before; nothing happens without noise.

    Args:
        model: what `add_noise` was called with.

    Returns:
        The model itself.

    Raises:
        InputError: the noise was added to a larger model or to a part of this one; remove it there.

    Examples:
        >>> net = add_noise(nn.Linear(4, 3), [""], example=torch.zeros(1, 4))
        >>> list(net.state_dict()), list(remove_noise(net).state_dict())
        (['weight', 'bias', 'noise.sigma', ...], ['weight', 'bias'])
    """
    forget_first_batch(model)
    refuse_waiting(model)  # a part of it
    take_away(model)
    return model


def noise_layers(model: nn.Module) -> dict[str, NeuronNoise]:
    """The noise layers of a model by module path, such as "fc1.noise".

    Args:
        model: any module, noisy or not.

    Returns:
        The layers in the order of the model's modules; their `sigma` and `mu` are what is learned.

    Raises:
        InputError: the noise still waits for a first batch.

    Examples:
        >>> net = add_noise(nn.Sequential(nn.Linear(4, 3)), "0", example=torch.zeros(1, 4))
        >>> {path: layer.sigma.mean().item() for path, layer in noise_layers(net).items()}
        {'0.noise': 1.0}
    """
    refuse_waiting(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, NeuronNoise)}


def is_noisy(model: nn.Module) -> bool:
    """Whether a model has any noise layer, acting or not.

    Raises:
        InputError: the noise still waits for a first batch.
    """
    return bool(noise_layers(model))


def _attach_and_begin(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, where: Where, settings: Settings
) -> None:
    """What the first batch of a model without an example sets off; its own pass is noisy already."""
    sites = choose(model, where)
    check_sites(sites)
    put(model, _plan_by_probe(model, sites, settings, args, kwargs), settings).begin()


def _plan_by_probe(
    model: nn.Module, sites: Sequence[Site], settings: Settings, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Plan]:
    seen = probe(model, sites, args, kwargs)
    samples = batch_size(args, kwargs, settings.batch_dim)
    return plan_seen(model, sites, seen, settings.granularity, settings.batch_dim, samples)


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"add_noise got {name}={value!r}; pass a whole number") from None


def _check_settings(settings: Settings, site: Site) -> None:
    if settings.granularity not in ("neuron", "channel", "layer"):
        raise InputError(f"add_noise got granularity={settings.granularity!r}; choose 'neuron', 'channel' or 'layer'")
    if settings.init != "normal" and not is_level(settings.init):
        raise InputError(
            f"{site}: sigma cannot start at {settings.init!r}; pass a finite number, or 'normal' for N(0, 1)"
        )
    if settings.estimator not in ("pathwise", "likelihood-ratio"):
        raise InputError(f"add_noise got estimator={settings.estimator!r}; choose 'pathwise' or 'likelihood-ratio'")
    if settings.batch_dim < 0:
        raise InputError(f"{site}: the batch axis cannot be {settings.batch_dim}; pass batch_dim=0 or more")


def check_model(model: nn.Module) -> None:
    """Refuse models that cannot be given noise as they are."""
    refuse_waiting(model)
    name = type(model).__name__
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise InputError(f"{name} is wrapped or compiled already; call add_noise on the plain model before that")
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"{path} has no shape yet, as {name} has lazy modules; call the model once, then add_noise"
            )
        if tensor.is_meta:
            raise InputError(
                f"{path} is on the meta device, where nothing can be computed; load the weights, then add_noise"
            )


def check_sites(sites: Sequence[Site]) -> None:
    """Refuse places that are taken."""
    for site in sites:
        if isinstance(getattr(site.module, "noise", None), NeuronNoise):
            raise InputError(f"{site} has noise already; call remove_noise(model) first, or name other modules")
        if hasattr(site.module, "noise"):
            raise InputError(
                f"{site} has an attribute `noise` of its own, where the noise would stand; name the module inside it "
                "that computes the output, or one after it"
            )
