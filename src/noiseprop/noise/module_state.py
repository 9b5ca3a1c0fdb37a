"""Switch a model to training or eval mode for a block, and undo all that its own `train()` or `eval()` changed."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_Undo = Callable[[], None]
_ABSENT = object()


@contextmanager
def preserve_modes(model: nn.Module, *, training: bool | None) -> Generator[None]:
    """Run a block with a model in training or eval mode, and restore the model as it was, also after an exception.

    `model.train()` or `model.eval()` is called at most once, and not at all where the modes are right already. Where a
    module overrides these methods, for example to merge LoRA weights or to keep a batch norm frozen, everything that
    the call changed is put back directly: the modes, attributes, values of tensors, and the very Parameter objects.
    Changes that the block itself makes stay, except for the modes.

    Args:
        model: any module.
        training: True for training mode, False for eval mode. None leaves the modes as they are; the block may then
            set `training` of single modules, but must not call `train()` or `eval()`.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
        >>> with preserve_modes(net, training=False):
        ...     [module.training for module in net.modules()]
        [False, False, False]
        >>> [module.training for module in net.modules()]
        [True, True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    undo: list[_Undo] = []
    try:
        if training is not None and _needs_switch(model, training):
            _switch_mode(model, training, undo)
        yield
    finally:
        _undo_all(undo)
        for module, mode in modes:
            module.training = mode


def _needs_switch(model: nn.Module, training: bool) -> bool:
    """Check for a wrong mode; in training mode, single modules may be frozen on purpose."""
    if training:
        return not model.training
    return any(module.training for module in model.modules())


def _switch_mode(model: nn.Module, training: bool, undo: list[_Undo]) -> None:
    """Call the model's `train()` or `eval()`, and append to `undo` what restores each thing that it changed."""
    saved: list[_SavedDict | _SavedList | _SavedTensor] = []
    if any(_overrides_modes(module) for module in model.modules()):
        _save_state(model, saved, set())
    try:
        model.train() if training else model.eval()
    finally:
        undo.extend(restore for entry in saved if (restore := entry.find_changes()) is not None)


def _overrides_modes(module: nn.Module) -> bool:
    """Return whether code outside torch runs when the module's mode is switched."""
    methods: tuple[Any, ...] = (module.train, module.eval)
    return any(not getattr(method, "__module__", "").startswith("torch.") for method in methods)


def _save_state(value: Any, saved: "list[_SavedDict | _SavedList | _SavedTensor]", seen: set[int]) -> None:
    """Save the tensors and containers that are reachable from a module; `seen` holds the ids of those done."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        _save_state(vars(value), saved, seen)
    elif isinstance(value, Tensor):
        saved.append(_SavedTensor(value))
        _save_state(vars(value), saved, seen)
    elif isinstance(value, dict):
        items = cast(dict[Any, Any], value)
        saved.append(_SavedDict(items))
        for inner in [*items.values()]:
            _save_state(inner, saved, seen)
    elif isinstance(value, list | set):
        entries = cast(list[Any] | set[Any], value)
        saved.append(_SavedList(entries))
        for inner in [*entries]:
            _save_state(inner, saved, seen)
    elif isinstance(value, SimpleNamespace) or (is_dataclass(value) and not isinstance(value, type)):
        _save_state(getattr(value, "__dict__", {}), saved, seen)
    elif isinstance(value, tuple):
        for inner in cast(tuple[Any, ...], value):
            _save_state(inner, saved, seen)


class _SavedDict:
    """Entries of a dict: the attributes of a module, its parameters, buffers, children or hooks."""

    def __init__(self, items: dict[Any, Any]) -> None:
        self.items, self.before = items, dict(items)

    def find_changes(self) -> _Undo | None:
        """Return what restores the entries that differ now, and leaves all others to the block."""
        now = dict(self.items)
        names = [n for n in dict.fromkeys(chain(self.before, now)) if n != "training"]
        changed = [n for n in names if self.before.get(n, _ABSENT) is not now.get(n, _ABSENT)]
        return (lambda: self._restore_entries(changed)) if changed else None

    def _restore_entries(self, names: list[Any]) -> None:
        kept = {name: value for name, value in self.items.items() if name not in names}
        old = {name: self.before[name] for name in names if name in self.before}
        merged = kept | old
        order = chain((name for name in self.before if name in merged), merged)
        entries = {name: merged[name] for name in order}  # the order of the parameters is that of the optimizer
        self.items.clear()
        self.items.update(entries)


class _SavedList:
    """Entries of a list or a set."""

    def __init__(self, entries: list[Any] | set[Any]) -> None:
        self.entries, self.before = entries, [*entries]

    def find_changes(self) -> _Undo | None:
        """Return what restores the entries, if they differ now."""
        same = len(self.entries) == len(self.before) and all(
            a is b for a, b in zip(self.entries, self.before, strict=True)
        )
        return None if same else self._restore_entries

    def _restore_entries(self) -> None:
        entries: Any = self.entries
        entries.clear()
        (entries.extend if isinstance(entries, list) else entries.update)(self.before)


class _SavedTensor:
    """Values, storage, gradient and `requires_grad` of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data = tensor, tensor.data  # shares the storage, but not the version counter
        self.requires_grad, self.grad = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        has_values = tensor.layout == torch.strided and tensor.device.type != "meta"
        self.values = tensor.data.clone() if has_values and not is_lazy(tensor) else None

    def find_changes(self) -> _Undo | None:
        """Return what restores the tensor, if it differs now."""
        tensor, undo = self.tensor, list[_Undo]()
        if self.values is not None and not torch.equal(self.data, self.values):
            undo.append(partial(_copy_values, self.values, self.data))
        if _get_storage(tensor.data) != _get_storage(self.data):
            undo.append(lambda: setattr(tensor, "data", self.data))
        if tensor.is_leaf and tensor.grad is not self.grad:
            undo.append(lambda: setattr(tensor, "grad", self.grad))
        if tensor.requires_grad != self.requires_grad:
            undo.append(lambda: setattr(tensor, "requires_grad", self.requires_grad))
        return partial(_undo_all, undo) if undo else None


def _copy_values(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def _undo_all(undo: list[_Undo]) -> None:
    for restore in undo:
        restore()


def _get_storage(data: Tensor) -> tuple[Any, ...]:
    if is_lazy(data) or data.layout != torch.strided:
        return (id(type(data)),)
    return data.data_ptr(), data.dtype, data.device, data.shape, data.stride()
