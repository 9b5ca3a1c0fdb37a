"""What module types say of themselves: their group, and which axes of their outputs are batch and channels."""

# torch has no public name for all convolutions, or all norms with statistics:
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

GROUPS = ("linear", "conv", "recurrent", "attention")


@dataclass(frozen=True)
class Layout:
    """How a module type lays out its output, batch first.

    Attributes:
        channel: the axis that counts channels: 1, or -1 for the last.
        channels: how many there are.
        after: how many axes follow the channels; None if that depends on the input.
        group: "linear", "conv", "recurrent", "attention", or "" for modules that only their name or type chooses.
    """

    channel: int
    channels: Callable[[Any], int]
    after: Callable[[Any], int | None] = lambda module: 0
    group: str = ""


def _recurrent_width(rnn: nn.RNNBase) -> int:
    return (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)


def _norm_axes(norm: nn.Module) -> int | None:
    """BatchNorm1d takes (B, C) and (B, C, L); the other dimensions are in the type's name."""
    return {"2d": 2, "3d": 3}.get(type(norm).__name__[-2:])


def _last(width: str, group: str = "") -> Layout:
    return Layout(-1, lambda module: getattr(module, width), group=group)


# Types of other packages stand by their full names, so that nothing is imported for them.
_LAYOUTS: dict[type[nn.Module] | str, Layout] = {
    nn.Linear: _last("out_features", "linear"),
    nn.Bilinear: _last("out_features", "linear"),
    "transformers.pytorch_utils.Conv1D": _last("nf", "linear"),
    "torch_geometric.nn.dense.linear.Linear": _last("out_channels", "linear"),
    nn.modules.conv._ConvNd: Layout(1, lambda m: m.out_channels, lambda m: len(m.kernel_size), "conv"),
    nn.RNNBase: Layout(-1, _recurrent_width, group="recurrent"),
    nn.RNNCellBase: _last("hidden_size", "recurrent"),
    nn.MultiheadAttention: _last("embed_dim", "attention"),
    nn.modules.batchnorm._NormBase: Layout(1, lambda m: m.num_features, _norm_axes),
    nn.GroupNorm: Layout(1, lambda m: m.num_channels, lambda m: None),
    nn.LayerNorm: Layout(-1, lambda m: m.normalized_shape[-1]),
    nn.RMSNorm: Layout(-1, lambda m: m.normalized_shape[-1]),
    nn.Embedding: _last("embedding_dim"),
    nn.EmbeddingBag: _last("embedding_dim"),
}


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a module's type or of the nearest type that it derives from, if one is known."""
    for cls in type(module).__mro__:
        known = _LAYOUTS.get(cls) or _LAYOUTS.get(f"{cls.__module__}.{cls.__qualname__}")
        if known is not None:
            return known
    return None


def batch_axis(module: nn.Module) -> int | None:
    """The axis of the batch where a module, or the transformer that it is part of, decides it itself."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention | nn.Transformer):
        return 0 if module.batch_first else 1
    return None
