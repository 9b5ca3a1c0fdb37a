"""What noise must do, written out: the tests of attaching compare with it to the bit."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import noiseprop


def key(*, seed: int = 0, passes: int = 0, layer: int = 0, call: int = 0) -> Tensor:
    return torch.tensor([seed, passes, layer, call, 0])


def noisy(clean: Tensor, sigma: Tensor | float, *, batch_dim: int = 0, **place: int) -> Tensor:
    """The clean output plus the noise that its place in the stream decides; sigma has the neurons' shape."""
    clean = clean.detach().movedim(batch_dim, 0)
    y = noiseprop.gaussian_noise(clean, torch.as_tensor(sigma, dtype=clean.dtype), key=key(**place))
    return y.movedim(0, batch_dim)


def snapshot(model: nn.Module) -> list[Any]:
    """All that `add_noise` might touch, by identity where identity must stay."""
    state: list[Any] = [[(name, id(p)) for name, p in model.named_parameters()], list(model.state_dict())]
    for name, module in model.named_modules():
        attributes = {
            k: (type(v), list(v.items())) if isinstance(v, dict | OrderedDict) else v for k, v in vars(module).items()
        }
        state.append((name, id(module), type(module), list(attributes), attributes))
    return state
