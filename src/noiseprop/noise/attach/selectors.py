"""Which places of a model `add_noise` means: groups, names with wildcards, types, predicates, or the input of these."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from noiseprop.errors import InputError
from noiseprop.noise.attach.layouts import GROUPS, layout_of
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.stream import NoiseStream

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
_SHOWN = 20  # candidates listed in an error

RUNS_CHILDREN = (
    "runs its children by a forward of its own, which may run a child that holds its noise as well; "
    "name the last module inside it, or an nn.Identity put behind it"
)


@dataclass(frozen=True)
class before:  # noqa: N801 - it reads as a word: where=before(nn.ReLU)
    """Noise on what a module is called with instead of what it returns: ``add_noise(model, before(nn.ReLU))``.

    Args:
        where: a group, names, types or a predicate, as `add_noise` takes them.

    Examples:
        >>> import noiseprop, torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net = noiseprop.add_noise(net, before(nn.ReLU), example=torch.zeros(1, 4))
        >>> list(noiseprop.noise_layers(net))
        ['1.noise']
    """

    where: "Selector | Sequence[str | type[nn.Module]]"


Where = Selector | before | Sequence[str | type[nn.Module]]


@dataclass(frozen=True)
class Site:
    """One place for noise.

    Attributes:
        path: of the module.
        module: the one that takes the hook and the child `noise`.
        before: noise is added to the module's input, not to its output.
        named: it was named outright, so that it is an error if the module is never called.
    """

    path: str
    module: nn.Module
    before: bool = False
    named: bool = False

    def __str__(self) -> str:
        return self.path or "the model itself"


def choose(model: nn.Module, where: Where) -> list[Site]:
    """The sites that `where` means, in the order of the model's modules.

    Raises:
        InputError: nothing matches, or what matches is no place for noise.
    """
    at_input = isinstance(where, before)
    if isinstance(where, before):
        where = where.where
    candidates = dict(_candidates(model))
    sites: dict[int, Site] = {}
    for selector in _selectors(where):
        matched = _matches(selector, candidates)
        if not matched:
            raise InputError(_nothing(selector, model, candidates))
        for path in matched:
            landed, module = _land(path, candidates, at_input)
            site = Site(landed, module, at_input, named=path == selector)
            if id(module) not in sites or (site.named and not sites[id(module)].named):
                sites[id(module)] = site
    order = {id(module): place for place, module in enumerate(model.modules())}
    return sorted(sites.values(), key=lambda site: order[id(site.module)])


def _candidates(model: nn.Module) -> Generator[tuple[str, nn.Module]]:
    """All modules under all their names, but for noise that is there already and what is never called as a module."""
    hidden: set[int] = set()
    for module in model.modules():
        # a ModuleList, for example, has no forward
        if isinstance(module, NeuronNoise | NoiseStream) or type(module).forward is nn.Module.forward:
            hidden.add(id(module))
        elif isinstance(module, nn.MultiheadAttention):  # the Linear inside only holds weights
            hidden.update(id(child) for child in module.modules() if child is not module)
        elif isinstance(module, ParametrizationList):  # what it computes is a weight
            hidden.update(id(child) for child in module.modules())
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) not in hidden:
            yield path, module


def _selectors(where: Selector | Sequence[str | type[nn.Module]]) -> list[Selector]:
    if isinstance(where, str):
        return [_in_group(where) if where in (*GROUPS, "all") else where]
    if callable(where):
        return [where]
    selectors: list[Any] = list(where) if hasattr(where, "__iter__") else []
    if not selectors:
        raise InputError(
            f"add_noise got where={where!r}; pass 'all', 'linear', 'conv', a name, wildcards, a module type, a "
            "predicate, or a sequence of names and types"
        )
    for selector in selectors:
        if not isinstance(selector, str | type):
            raise InputError(f"add_noise got {selector!r} in where; a sequence holds names of modules and module types")
    return selectors


@dataclass(frozen=True)
class _in_group:  # noqa: N801 - a predicate
    group: str

    def __call__(self, path: str, module: nn.Module) -> bool:
        layout = layout_of(module)
        return layout is not None and layout.group in (GROUPS if self.group == "all" else (self.group,))


def _matches(selector: Selector, candidates: dict[str, nn.Module]) -> list[str]:
    """The paths of the modules that one selector means."""
    if isinstance(selector, type):
        return [path for path, module in candidates.items() if isinstance(module, selector)]
    if not isinstance(selector, str):
        return [path for path, module in candidates.items() if selector(path, module)]
    return [selector] if selector in candidates else [path for path in candidates if fnmatchcase(path, selector)]


def _land(path: str, candidates: dict[str, nn.Module], at_input: bool) -> tuple[str, nn.Module]:
    """Where hook and child can stand: an nn.Sequential would run the child, so its last module takes them."""
    module = candidates[path]
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        if len(module) == 0:
            raise InputError(f"{path or 'the model'} is an empty Sequential, where nothing runs; name another module")
        children = list(module._modules.items())  # pyright: ignore[reportPrivateUsage] - with those that stand there twice
        name, inner = children[0 if at_input else -1]
        assert inner is not None
        inner_path = f"{path}.{name}" if path else name
        if _aliases(inner, candidates) != _aliases(module, candidates):
            raise InputError(
                f"{inner_path} would carry the noise of {path or 'the model'}, but is a noise layer itself or is used "
                "elsewhere too; put an nn.Identity in its place and name that"
            )
        path, module = inner_path, inner
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise InputError(f"{path or 'the model'} {RUNS_CHILDREN}")
    return path, module


def _aliases(module: nn.Module, candidates: dict[str, nn.Module]) -> int:
    return sum(candidate is module for candidate in candidates.values())


def _nothing(selector: Selector, model: nn.Module, candidates: dict[str, nn.Module]) -> str:
    """Say that a selector matches no module, and what there is instead."""
    if isinstance(selector, str) and selector in dict(model.named_modules(remove_duplicate=False)):
        return f"{selector} is never called as a module, so it has no output; name a module around it or inside it"
    name = selector if isinstance(selector, str) else getattr(selector, "group", None)
    asked = repr(name) if name is not None else getattr(selector, "__name__", "the predicate")
    shown = [f"{path or repr('')} ({type(module).__name__})" for path, module in candidates.items()]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"no module of {type(model).__name__} matches where={asked}; there are {', '.join(shown[:_SHOWN])}{more}"
