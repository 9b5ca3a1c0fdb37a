"""Microbatches: parts of a batch whose feature maps stay in the cache, for any B and K."""

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sampling import sampling

# The widest map of a part has about this many values or less: 334 digits in the paper's CNN, which made it a fifth
# faster than one pass of 500, and 128 images in the ResNets.
_MAP_VALUES = 1 << 23
# Batches of fewer values than this are not worth a trial pass: 167 digits, 42 images of CIFAR-10.
_SMALL = 1 << 17


class _MapWidths(NamedTuple):
    """Values per image of a model's widest map, and of the widest of which K draws hold K copies (0 without noise)."""

    widest: int
    copied: int


_Layout = tuple[tuple[str, ...], torch.Size]  # names of the noise layers, and the shape of an image
_known_widths: "WeakKeyDictionary[nn.Module, dict[_Layout, _MapWidths]]" = WeakKeyDictionary()


def split_batch(model: nn.Module, x: Tensor, draws: int) -> list[slice]:
    """Return slices of the batch x (B, ...), as equal as possible, to pass through the model one after the other.

    Draws share everything before the noise, so the widest map after the noise limits K draws: a network with noise in
    its head takes many images at once, one with noise in its first layer few.
    """
    if draws == 1 and x.numel() <= _SMALL:
        return [slice(None)]
    widths = _measure_widths(model, x)
    values = len(x) * max(widths.widest, draws * widths.copied)
    count = min(len(x), math.ceil(values / _MAP_VALUES))
    size = math.ceil(len(x) / count)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _measure_widths(model: nn.Module, x: Tensor) -> _MapWidths:
    """Return the widths for one image and for five draws of it, measured once per model.

    The draws are frozen, so that the model's noise does not advance. Five of them are distinct from one image and from
    the two images that `sampling` may try.
    """
    layout = tuple(name for name, module in model.named_modules() if isinstance(module, NeuronNoise)), x.shape[1:]
    known = _known_widths.setdefault(model, {})
    if layout not in known:
        widest: dict[int, int] = {1: x[0].numel(), 5: 0}  # by number of rows

        def record_width(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() > 1 and len(output) in widest:
                widest[len(output)] = max(widest[len(output)], output[0].numel())

        handles = [module.register_forward_hook(record_width) for module in model.modules() if module is not model]
        try:
            with sampling(model, "frozen", draws=5, key=1):
                model(x[:1].clone())
        finally:
            for handle in handles:
                handle.remove()
        known[layout] = _MapWidths(widest[1], widest[5])
    return known[layout]
