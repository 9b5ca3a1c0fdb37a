"""Describe known module types: their group, and the batch and channel axes of their outputs."""

# torch has no public name for all convolutions, or all norms with statistics:
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

GROUPS = ("linear", "conv", "recurrent", "attention")


@dataclass(frozen=True)
class Layout:
    """Axes of the output of a module type, batch first.

    Attributes:
        channel: the channel axis: 1, or -1 for the last.
        channels: returns the number of channels of a module.
        after: returns the number of axes after the channels, or None if it depends on the input.
        group: "linear", "conv", "recurrent", "attention", or "" for modules that are selected by name or type only.
    """

    channel: int
    channels: Callable[[Any], int]
    after: Callable[[Any], int | None] = lambda module: 0
    group: str = ""


def _get_recurrent_width(rnn: nn.RNNBase) -> int:
    return (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)


def _get_norm_axes(norm: nn.Module) -> int | None:
    """Return the axes after the channels by the type's name; BatchNorm1d takes (B, C) and (B, C, L)."""
    return {"2d": 2, "3d": 3}.get(type(norm).__name__[-2:])


def _last_axis_layout(width: str, group: str = "") -> Layout:
    return Layout(-1, lambda module: getattr(module, width), group=group)


# Types of other packages are given by their full names, so that the packages need not be imported.
_LAYOUTS: dict[type[nn.Module] | str, Layout] = {
    nn.Linear: _last_axis_layout("out_features", "linear"),
    nn.Bilinear: _last_axis_layout("out_features", "linear"),
    "transformers.pytorch_utils.Conv1D": _last_axis_layout("nf", "linear"),
    "torch_geometric.nn.dense.linear.Linear": _last_axis_layout("out_channels", "linear"),
    nn.modules.conv._ConvNd: Layout(1, lambda m: m.out_channels, lambda m: len(m.kernel_size), "conv"),
    nn.RNNBase: Layout(-1, _get_recurrent_width, group="recurrent"),
    nn.RNNCellBase: _last_axis_layout("hidden_size", "recurrent"),
    nn.MultiheadAttention: _last_axis_layout("embed_dim", "attention"),
    nn.modules.batchnorm._NormBase: Layout(1, lambda m: m.num_features, _get_norm_axes),
    nn.GroupNorm: Layout(1, lambda m: m.num_channels, lambda m: None),
    nn.LayerNorm: Layout(-1, lambda m: m.normalized_shape[-1]),
    nn.RMSNorm: Layout(-1, lambda m: m.normalized_shape[-1]),
    nn.Embedding: _last_axis_layout("embedding_dim"),
    nn.EmbeddingBag: _last_axis_layout("embedding_dim"),
}


def get_layout(module: nn.Module) -> Layout | None:
    """Return the layout of a module's type or of its nearest known base class, or None."""
    for cls in type(module).__mro__:
        known = _LAYOUTS.get(cls) or _LAYOUTS.get(f"{cls.__module__}.{cls.__qualname__}")
        if known is not None:
            return known
    return None


def get_batch_axis(module: nn.Module) -> int | None:
    """Return the batch axis of modules that have a `batch_first` option, or None."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention | nn.Transformer):
        return 0 if module.batch_first else 1
    return None
