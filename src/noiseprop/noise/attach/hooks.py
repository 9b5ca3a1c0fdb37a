"""The forward hooks that put noise into what a module returns, or into what it is given."""

# how often a tensor was changed in place, torch tells only privately:
# pyright: reportPrivateUsage=false

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from noiseprop.errors import InputError
from noiseprop.noise.kernels import functorch as transforms


def add_to_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Add noise to a module's output; of tuples and dicts, to the first tensor in them."""
    noise = _noise_of(module)
    if isinstance(output, Tensor):
        return noise(output)
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return noise(output[0]), *output[1:]
    return _replace_first(output, noise)


def add_by_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """Add noise that depends on the module's input too, as noise on its weight does."""
    noise = _noise_of(module)
    return noise.add_by_input(module, first_tensor((args, kwargs)), output)


def add_to_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Add noise to the first tensor that a module is called with."""
    noise = _noise_of(module)
    if args and isinstance(args[0], Tensor):
        return (noise(args[0]), *args[1:]), kwargs
    return _replace_first((args, kwargs), noise)


def add_to_sequence(module: nn.RNNBase, args: Any, output: tuple[Any, Any]) -> Any:
    """Add noise to the output sequence of an RNN, and hence to its last hidden states, which are entries of it.

    What goes from step to step inside the call stays free of noise, as do the states of lower layers and LSTM cells.
    """
    noise = _noise_of(module)
    sequence, states = output
    clean = sequence_tensor(sequence, module, noise.path)
    noisy = noise(clean)
    if noisy is clean:
        return output
    hidden, *cell = states if isinstance(states, tuple) else (states,)  # each (layers * directions, B, F / directions)
    draws = noisy.shape[noise.batch_dim] // max(1, hidden.shape[1])  # a batch may be empty
    if draws > 1:
        hidden, *cell = (torch.cat([state] * draws, dim=1) for state in (hidden, *cell))
    by_time = noisy if module.batch_first else noisy.transpose(0, 1)  # (B, T, F)
    lengths = None
    if isinstance(sequence, PackedSequence):
        lengths = pad_packed_sequence(sequence)[1].repeat(draws)
        noisy = _packed(by_time, lengths, like=sequence)
    last = _last_states(by_time, lengths, bidirectional=module.bidirectional)
    hidden = torch.cat([hidden[: -len(last)], last])
    return noisy, (hidden, *cell) if cell else hidden


def _noise_of(module: nn.Module) -> Any:
    """The noise layer of a module; a sigma that is NaN is told before it spreads.

    It is looked at when it first acts and, in eval mode, whenever it has changed. In training, where it changes all the
    time and looking would cost a pass over it (and a GPU its queue), the loss tells.
    """
    noise: Any = module.noise
    if torch.compiler.is_compiling() or transforms.are_transforms_active():
        return noise
    seen = noise.__dict__.get("_seen_finite")
    if noise.training and seen is not None:
        return noise
    sigma, sampling = noise.sigma, noise.stream.sampling
    if sigma.is_inference() or (sampling is not None and sampling.off) or sigma._version == seen:
        return noise
    if not sigma.detach().isfinite().all():
        raise InputError(
            f"{noise.path}: sigma holds NaN or infinity; load it again from before that, and train with a smaller "
            "learning rate for sigma"
        )
    noise.__dict__["_seen_finite"] = sigma._version
    return noise


def sequence_tensor(sequence: Any, module: nn.RNNBase, path: str) -> Tensor:
    """What an RNN returns first as one tensor (B, T, F), or (T, B, F) if time-first; a packed sequence is padded."""
    if isinstance(sequence, PackedSequence):
        return pad_packed_sequence(sequence, batch_first=module.batch_first)[0]
    if sequence.dim() != 3:
        raise InputError(
            f"{path}: its output of shape {tuple(sequence.shape)} has no batch axis, so noise has no samples; "
            "call it with a batch of one sequence"
        )
    return sequence


def first_tensor(tree: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and dicts, which is the one that receives the noise."""
    return next((leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)), None)


def _replace_first(tree: Any, noise: Any) -> Any:
    leaves, structure = tree_flatten(tree)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            return tree_unflatten([*leaves[:i], noise(leaf), *leaves[i + 1 :]], structure)
    raise InputError(
        f"{noise.path} got a {type(tree).__name__} without a tensor in it, so there is nothing to add noise to"
    )


def _last_states(by_time: Tensor, lengths: Tensor | None, *, bidirectional: bool) -> Tensor:
    """The top layer's final hidden states (directions, B, F / directions), as they stand in its output (B, T, F)."""
    if lengths is None:
        last = by_time[:, -1]
    else:
        last = by_time[torch.arange(len(lengths), device=by_time.device), lengths.to(by_time.device) - 1]
    if not bidirectional:
        return last.unsqueeze(0)
    half = last.shape[-1] // 2
    return torch.stack([last[:, :half], by_time[:, 0, half:]])


def _packed(by_time: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """Pack (B, T, F) again, its rows in the order that `like` has them in."""
    order = like.sorted_indices
    if len(lengths) > like.batch_sizes[0]:  # several draws
        return pack_padded_sequence(by_time, lengths, batch_first=True, enforce_sorted=False)
    if order is None:
        return pack_padded_sequence(by_time, lengths, batch_first=True)
    data = pack_padded_sequence(by_time[order], lengths[order.cpu()], batch_first=True).data
    return PackedSequence(data, like.batch_sizes, order, like.unsorted_indices)
