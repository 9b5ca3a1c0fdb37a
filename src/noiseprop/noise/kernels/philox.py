"""The random stream: which standard normal belongs to which neuron of which sample.

Every normal is a pure function of a key ``(seed, pass, layer, call, first sample)`` and a place ``(sample, neuron)``.
Philox4x32-7 (Salmon et al., 2011: "Parallel random numbers: as easy as 1, 2, 3") turns

    counter = (neuron, sample // 8, pass, layer + 65536 * call),   key = the seed's 64 bits

into four 32-bit words; Box and Muller (1958) turn each word into two normals, for the samples ``8 * (sample // 8) + 0
… 7``: the upper 20 bits are the radius' uniform ``(n + 1/2) / 2**20``, the lower 12 the angle. So no normal exceeds
5.38 in magnitude, one word has 2**32 outcomes, and the stream repeats after 2**32 passes, samples / 8 or neurons,
65,536 layers or calls.

This module is the definition in plain torch, for any device; `noiseprop.noise.kernels.dispatch` computes the same numbers, up to
rounding in the last bits, in one pass over the memory.
"""

import math

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LANES = 8  # normals from one block: one for each of eight neighbouring samples
RADIUS_BITS, ANGLE_BITS = 20, 12
CALL = 65536  # a layer's calls stand in the counter above its number
_LOW = 0xFFFFFFFF


def _philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """Four int64 tensors that hold 32-bit counter words become four that hold 32 random bits."""
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # the 64 bits wrap, as they should
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _box_muller(word: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals (float32) from 32 random bits."""
    uniform = ((word >> ANGLE_BITS).float() + 0.5) * 2.0**-RADIUS_BITS
    angle = (((word & (2**ANGLE_BITS - 1)).float() + 0.5) * 2.0**-ANGLE_BITS - 0.5) * (2 * math.pi)
    radius = (-2 * uniform.log()).sqrt()
    return radius * angle.cos(), radius * angle.sin()


def standard_normal(key: Tensor, draws: int, batch: int, neurons: int) -> Tensor:
    """Draw the noise of a layer that holds ``draws`` draws of one batch, one after another.

    Args:
        key: int64 (5,), on any device: seed, pass of the first draw, layer, call, global index of the first sample.
        draws: number of passes K in the rows; draw k is the noise of pass + k.
        batch: samples B in a draw.
        neurons: neurons in a sample, numbered in the order of a contiguous tensor.

    Returns:
        float32 (draws * batch, neurons) on the key's device.
    """
    seed, start, layer, call, first = key.unbind()
    count = lambda n: torch.arange(n, device=key.device)  # noqa: E731
    groups = (batch + LANES - 2) // LANES + 1  # as many as a batch can touch, wherever it starts
    words = _philox(
        count(neurons).view(1, 1, -1),
        ((first // LANES + count(groups)) & _LOW).view(1, -1, 1),
        ((start + count(draws)) & _LOW).view(-1, 1, 1),
        (layer + call * CALL) & _LOW,
        seed & _LOW,
        (seed >> 32) & _LOW,
    )
    normals = [z for word in words for z in _box_muller(word)]  # 8 x (K, groups, neurons)
    eps = torch.stack(normals, dim=2).view(draws, groups * LANES, neurons)
    return eps.index_select(1, first % LANES + count(batch)).view(draws * batch, neurons)
