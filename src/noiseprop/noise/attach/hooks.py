"""Forward hooks that add noise to the output or the input of a module."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from noiseprop.errors import InputError
from noiseprop.noise.kernels import functorch as transforms


def add_to_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Add noise to a module's output, or to the first tensor of a tuple or dict."""
    noise = _get_checked_noise(module)
    if isinstance(output, Tensor):
        return noise(output)
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return noise(output[0]), *output[1:]
    return _add_to_first_tensor(output, noise)


def add_by_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """Add noise that depends on the module's input too, as noise on its weight does."""
    noise = _get_checked_noise(module)
    return noise.add_by_input(module, find_first_tensor((args, kwargs)), output)


def add_to_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Add noise to the first tensor that a module is called with."""
    noise = _get_checked_noise(module)
    if args and isinstance(args[0], Tensor):
        return (noise(args[0]), *args[1:]), kwargs
    return _add_to_first_tensor((args, kwargs), noise)


def add_to_sequence(module: nn.RNNBase, args: Any, output: tuple[Any, Any]) -> Any:
    """Add noise to the output sequence of an RNN and to its last hidden states, which are entries of the sequence.

    The states inside the call stay free of noise, as do those of lower layers and of LSTM cells.
    """
    noise = _get_checked_noise(module)
    sequence, states = output
    clean = get_sequence_tensor(sequence, module, noise.path)
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
        noisy = _pack_again(by_time, lengths, like=sequence)
    last = _get_last_states(by_time, lengths, bidirectional=module.bidirectional)
    hidden = torch.cat([hidden[: -len(last)], last])
    return noisy, (hidden, *cell) if cell else hidden


def _get_checked_noise(module: nn.Module) -> Any:
    """Return the noise layer of a module, after a check of its sigma where its noise acts."""
    noise: Any = module.noise
    if not (torch.compiler.is_compiling() or transforms.are_transforms_active()):
        sampling = noise.state.sampling
        if sampling is None or not sampling.off:
            noise.check_sigma()
    return noise


def get_sequence_tensor(sequence: Any, module: nn.RNNBase, path: str) -> Tensor:
    """Return an RNN's output sequence as one tensor (B, T, F), or (T, B, F) if time-first; pad a packed sequence."""
    if isinstance(sequence, PackedSequence):
        return pad_packed_sequence(sequence, batch_first=module.batch_first)[0]
    if sequence.dim() != 3:
        raise InputError(
            f"{path}: the output of shape {tuple(sequence.shape)} has no batch axis; call the model with a batch of "
            "one sequence"
        )
    return sequence


def find_first_tensor(tree: Any) -> Tensor | None:
    """Return the first tensor in nested tuples, lists and dicts, which receives the noise."""
    return next((leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)), None)


def _add_to_first_tensor(tree: Any, noise: Any) -> Any:
    leaves, structure = tree_flatten(tree)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            return tree_unflatten([*leaves[:i], noise(leaf), *leaves[i + 1 :]], structure)
    raise InputError(
        f"{noise.path} got a {type(tree).__name__} without a tensor, so noise cannot be added; select another module"
    )


def _get_last_states(by_time: Tensor, lengths: Tensor | None, *, bidirectional: bool) -> Tensor:
    """Return the top layer's final hidden states (directions, B, F / directions), found in its output (B, T, F)."""
    if lengths is None:
        last = by_time[:, -1]
    else:
        last = by_time[torch.arange(len(lengths), device=by_time.device), lengths.to(by_time.device) - 1]
    if not bidirectional:
        return last.unsqueeze(0)
    half = last.shape[-1] // 2
    return torch.stack([last[:, :half], by_time[:, 0, half:]])


def _pack_again(by_time: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """Pack (B, T, F) with its rows in the order of `like`."""
    order = like.sorted_indices
    if len(lengths) > like.batch_sizes[0]:  # several draws
        return pack_padded_sequence(by_time, lengths, batch_first=True, enforce_sorted=False)
    if order is None:
        return pack_padded_sequence(by_time, lengths, batch_first=True)
    data = pack_padded_sequence(by_time[order], lengths[order.cpu()], batch_first=True).data
    return PackedSequence(data, like.batch_sizes, order, like.unsorted_indices)
