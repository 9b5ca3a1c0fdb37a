"""Select modules for noise by group, path, wildcards, type or predicate, at their output or their input."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from noiseprop.errors import InputError, suggest_name
from noiseprop.noise.attach.layouts import GROUPS, get_layout
from noiseprop.noise.layer import NeuronNoise

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
_MAX_LISTED = 20  # modules in an error message

RUNS_CHILDREN = (
    "runs its children in its own `forward`, which may run a child that holds the noise as well; "
    "select the last module inside it, or an nn.Identity after it"
)


@dataclass(frozen=True)
class before:  # noqa: N801 - it reads like a function: where=before(nn.ReLU)
    """Select the inputs of modules instead of their outputs: ``add_noise(model, before(nn.ReLU))``.

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
        path: path of the module.
        module: the module that gets the hook and the child `noise`.
        before: noise is added to the module's input instead of its output.
        named: the site was selected by its path, so that it is an error if the module is never called.
    """

    path: str
    module: nn.Module
    before: bool = False
    named: bool = False

    def __str__(self) -> str:
        return self.path or "the model itself"


def select_sites(model: nn.Module, where: Where) -> list[Site]:
    """Return the sites that `where` selects, in the order of the model's modules.

    Raises:
        InputError: no module matches, or a match cannot hold noise.
    """
    at_input = isinstance(where, before)
    if isinstance(where, before):
        where = where.where
    candidates = dict(_find_candidates(model))
    sites: dict[int, Site] = {}
    for selector in _parse_selectors(where):
        matched = _match_selector(selector, candidates)
        if not matched:
            raise InputError(_describe_no_match(selector, model, candidates))
        for path in matched:
            landed, module = _resolve_site(path, candidates, at_input)
            site = Site(landed, module, at_input, named=path == selector)
            if id(module) not in sites or (site.named and not sites[id(module)].named):
                sites[id(module)] = site
    order = {id(module): place for place, module in enumerate(model.modules())}
    return sorted(sites.values(), key=lambda site: order[id(site.module)])


def _find_candidates(model: nn.Module) -> Generator[tuple[str, nn.Module]]:
    """Yield modules under all their paths, except for noise layers and modules that are never called as such."""
    hidden: set[int] = set()
    for module in model.modules():
        # a ModuleList, for example, has no forward
        if isinstance(module, NeuronNoise) or type(module).forward is nn.Module.forward:
            hidden.add(id(module))
        elif isinstance(module, nn.MultiheadAttention):  # the Linear inside only holds weights
            hidden.update(id(child) for child in module.modules() if child is not module)
        elif isinstance(module, ParametrizationList):  # it computes a weight
            hidden.update(id(child) for child in module.modules())
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) not in hidden:
            yield path, module


def _parse_selectors(where: Selector | Sequence[str | type[nn.Module]]) -> list[Selector]:
    if isinstance(where, str):
        return [_GroupSelector(where) if where in (*GROUPS, "all") else where]
    if callable(where):
        return [where]
    selectors: list[Any] = list(where) if hasattr(where, "__iter__") else []
    if not selectors:
        raise InputError(
            f"add_noise got where={where!r}; pass 'all', 'linear', 'conv', a path, wildcards, a module type, a "
            "predicate, or a sequence of paths and types"
        )
    for selector in selectors:
        if not isinstance(selector, str | type):
            raise InputError(
                f"add_noise got {selector!r} in where; a sequence may hold paths of modules and module types"
            )
    return selectors


@dataclass(frozen=True)
class _GroupSelector:
    group: str

    def __call__(self, path: str, module: nn.Module) -> bool:
        layout = get_layout(module)
        return layout is not None and layout.group in (GROUPS if self.group == "all" else (self.group,))


def _match_selector(selector: Selector, candidates: dict[str, nn.Module]) -> list[str]:
    """Return the paths of the modules that one selector matches."""
    if isinstance(selector, type):
        return [path for path, module in candidates.items() if isinstance(module, selector)]
    if not isinstance(selector, str):
        return [path for path, module in candidates.items() if selector(path, module)]
    return [selector] if selector in candidates else [path for path in candidates if fnmatchcase(path, selector)]


def _resolve_site(path: str, candidates: dict[str, nn.Module], at_input: bool) -> tuple[str, nn.Module]:
    """Return the module for hook and child: the last one of an nn.Sequential, which would run a child itself."""
    module = candidates[path]
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        if len(module) == 0:
            raise InputError(f"{path or 'the model'} is an empty Sequential without an output; select another module")
        children = list(module._modules.items())  # pyright: ignore[reportPrivateUsage] - including modules that it holds twice
        name, inner = children[0 if at_input else -1]
        assert inner is not None
        inner_path = f"{path}.{name}" if path else name
        if _count_aliases(inner, candidates) != _count_aliases(module, candidates):
            raise InputError(
                f"{inner_path} would carry the noise of {path or 'the model'}, but is a noise layer itself or is used "
                "elsewhere too; add an nn.Identity after it and select that"
            )
        path, module = inner_path, inner
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise InputError(f"{path or 'the model'} {RUNS_CHILDREN}")
    return path, module


def _count_aliases(module: nn.Module, candidates: dict[str, nn.Module]) -> int:
    return sum(candidate is module for candidate in candidates.values())


def _describe_no_match(selector: Selector, model: nn.Module, candidates: dict[str, nn.Module]) -> str:
    """Return the message for a selector without a match, with a suggestion and the modules of the model."""
    if isinstance(selector, str) and selector in dict(model.named_modules(remove_duplicate=False)):
        return f"{selector} is never called as a module, so it has no output; select a module around it or inside it"
    name = selector if isinstance(selector, str) else getattr(selector, "group", None)
    asked = repr(name) if name is not None else getattr(selector, "__name__", "the predicate")
    shown = [f"{path or repr('')} ({type(module).__name__})" for path, module in candidates.items()]
    more = f" and {len(shown) - _MAX_LISTED} more" if len(shown) > _MAX_LISTED else ""
    if not isinstance(selector, str):
        hint = ""
    elif selector in (*GROUPS, "all"):
        hint = f"; a sequence holds paths and types, so pass where={selector!r} for the group"
    else:
        hint = suggest_name(selector, [*GROUPS, "all", *candidates])
    listed = ", ".join(shown[:_MAX_LISTED])
    return f"no module of {type(model).__name__} matches where={asked}; there are {listed}{more}{hint}"
