"""How many images go through a model at once: parts whose feature maps stay in the cache, whatever B and K are."""

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sampling import sampling

# A part has at most about this many values of the images (334 digits, 85 of CIFAR-10), which made the paper's CNN a
# fifth faster than one pass of 500 digits; and the widest map that K draws hold K copies of, at most about this many.
_IMAGE_VALUES = 1 << 18
_COPIED_VALUES = 1 << 23

_Noisy = tuple[tuple[str, ...], torch.Size]  # where a model's noise is, and the shape of an image
_widths: "WeakKeyDictionary[nn.Module, dict[_Noisy, int]]" = WeakKeyDictionary()


def parts(model: nn.Module, x: Tensor, draws: int) -> list[slice]:
    """Slices of the batch x (B, ...), as equal as may be, to be put through the model one after the other.

    Draws share all that comes before the noise, so what counts for K of them is the widest map behind it: a network
    with noise in its head takes many images at once, one with noise in its first layer few.
    """
    values = x.numel() / _IMAGE_VALUES
    if draws > 1:
        values = max(values, draws * len(x) * _copied_width(model, x) / _COPIED_VALUES)
    count = min(len(x), math.ceil(values))
    size = math.ceil(len(x) / count)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _copied_width(model: nn.Module, x: Tensor) -> int:
    """Values per image of the widest map that several draws hold copies of; tried once, with one image.

    The draws are frozen ones, so that the model's noise does not move on. There are five of them, which tells their
    maps from those of one image and of the two that `sampling` itself may try.
    """
    noisy = tuple(name for name, module in model.named_modules() if isinstance(module, NeuronNoise))
    known = _widths.setdefault(model, {})
    if (noisy, x.shape[1:]) not in known:
        widths = [1]

        def look(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() > 1 and len(output) == 5:
                widths.append(output.numel() // 5)

        handles = [module.register_forward_hook(look) for module in model.modules()]
        try:
            with sampling(model, "frozen", draws=5, key=1):
                model(x[:1])
        finally:
            for handle in handles:
                handle.remove()
        known[noisy, x.shape[1:]] = max(widths)
    return known[noisy, x.shape[1:]]
