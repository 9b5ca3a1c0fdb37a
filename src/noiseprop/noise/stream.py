"""Which key each call of each noise layer gets: (seed, pass, layer, call within the pass, sample).

A model has one stream. Its pass advances once per call of the model, so all layers of a pass agree on it, and a block
that is run again in the backward pass (`torch.utils.checkpoint`) can be given the keys that it had.
"""

# torch tells only its private parts whether a graph is being run backwards:
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noiseprop.errors import NoisepropError
from noiseprop.noise.op import KEY_LENGTH

if TYPE_CHECKING:
    from noiseprop.noise.sampling import Sampling

_PASS, _LAYER, _CALL, _FIRST = 1, 2, 3, 4
_REMEMBERED = 1 << 14  # calls inside checkpointed blocks whose keys are kept for their recomputation


class NoiseStream(nn.Module):
    """The source of a model's noise: its seed and the number of the next pass, kept in the state dict as ``key``.

    Attributes:
        key: int64 (5,): seed, next pass, and zeros where a layer puts its own numbers.
        first_sample: global index of this process's first sample, when several share one batch.
    """

    key: Tensor
    _one_pass: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("key", seed_key(seed))
        self.register_buffer("_one_pass", _one_hot(_PASS), persistent=False)
        self.first_sample = 0
        self.sampling: Sampling | None = None
        self._current = self.key.clone()
        self.scores: list[Tensor] = []  # of this pass: see noiseprop.noise.likelihood_ratio
        self._calls: dict[int, int] = {}
        self._remembered: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def begin(self, *_: Any) -> None:
        """Start a pass; a forward pre-hook of the model."""
        sampling = self.sampling
        if torch.is_grad_enabled():
            self.scores = []
        self._calls = {}
        if sampling is not None and sampling.frozen is not None:
            self._current = sampling.frozen.to(self.key.device)
        else:
            self._current = self.key.clone()
            passes = 1 if sampling is None or sampling.draws is None else sampling.draws
            self.key.add_(self._one_pass, alpha=passes)
        if self.first_sample:
            self._current = self._current + self.first_sample * _one_hot(_FIRST).to(self.key.device)

    def next_key(self, layer: Tensor, number: int, training: bool) -> Tensor:
        """The key of a layer's next call in this pass; `layer` is its place in the key, one int64 (5,)."""
        if torch.compiler.is_compiling() or not _may_be_checkpointed(training):
            return self._draw_key(layer, number)
        return self._recall_key(layer, number)

    def _draw_key(self, layer: Tensor, number: int) -> Tensor:
        call = self._calls.get(number, 0)
        self._calls[number] = call + 1
        key = self._current + layer
        return key if call == 0 else key + call * _one_hot(_CALL).to(key.device)

    def _recall_key(self, layer: Tensor, number: int) -> Tensor:
        """Inside a checkpointed block: the same key in the recomputation as in the forward pass.

        `checkpoint` restores torch's global random state before it runs a block again, so a number drawn from it
        names this very call, in whatever order, and however late, blocks and passes are recomputed.
        """
        name = (number, int(torch.empty((), dtype=torch.int64).random_().item()))
        if torch._C._current_graph_task_id() == -1:  # the forward pass
            key = self._draw_key(layer, number)
            self._remembered[name] = key
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
            return key
        if name not in self._remembered:
            raise NoisepropError(
                "a noise layer was run again in the backward pass, but not with the random state of its forward pass; "
                "use torch.utils.checkpoint with preserve_rng_state=True and use_reentrant=False"
            )
        return self._remembered[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> "NoiseStream":
        copy = NoiseStream(0)
        memo[id(self)] = copy
        copy.key = self.key.clone()
        copy._one_pass = self._one_pass.clone()
        copy._current = copy.key.clone()
        copy.first_sample = self.first_sample
        return copy

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle keeps: the stream's place, none of what belongs to a pass under way."""
        return self.__dict__ | {"sampling": None, "scores": [], "_calls": {}, "_remembered": OrderedDict()}


def seed_key(seed: int) -> Tensor:
    """The key of a seed: pass 0, and zeros for layer, call and first sample."""
    key = torch.zeros(KEY_LENGTH, dtype=torch.int64)
    key[0] = (seed + 2**63) % 2**64 - 2**63
    return key


def layer_key(number: int) -> Tensor:
    """What a layer adds to the key of a pass."""
    return number * _one_hot(_LAYER)


def noise_streams(model: nn.Module) -> list[NoiseStream]:
    """All streams inside a model: one in a model given noise once, none in a noise-free one."""
    return [module for module in model.modules() if isinstance(module, NoiseStream)]


def reset_noise(model: nn.Module, key: int) -> None:
    """Start a model's noise again at pass 0 of the seed `key`, so that what follows can be repeated."""
    for stream in noise_streams(model):
        stream.key.copy_(seed_key(key))


def _one_hot(place: int) -> Tensor:
    return torch.tensor([int(i == place) for i in range(KEY_LENGTH)])


def _may_be_checkpointed(training: bool) -> bool:
    """Whether this call may belong to a block that is, or will be, run again in a backward pass."""
    if torch._C._current_graph_task_id() != -1:
        return True
    if not torch.is_grad_enabled():
        return training  # a reentrant checkpoint runs its block without a graph
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
