"""Definition of the random stream: the standard normal that belongs to each neuron of each sample.

Every normal is a pure function of a key ``(seed, pass, layer, call, first sample)`` and of ``(sample, neuron)``.
Philox4x32-7 (Salmon et al., 2011: "Parallel random numbers: as easy as 1, 2, 3") turns

    counter = (neuron, sample // 8, pass, layer + 65536 * call),   key = the 64 bits of the seed

into four 32-bit words. The Box-Muller transform (1958) turns each word into two normals, for the samples
``8 * (sample // 8) + 0 … 7``: the upper 20 bits give the uniform of the radius, ``(n + 1/2) / 2**20``, the lower 12
the angle. Therefore no normal exceeds 5.38 in magnitude, one word has 2**32 outcomes, and the stream repeats after
2**32 passes, groups of 8 samples or neurons, and after 65,536 layers or calls.

This module defines the stream in plain torch, for any device. The kernels that `noiseprop.noise.kernels.dispatch`
selects draw the same words in one pass over memory. Their normals differ from the exact ones by rounding and by the
error of their polynomials: at most 5e-5 on CPUs (numba) and 2e-6 on GPUs (Triton), against 1e-6 here.
"""

import math

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LANES = 8  # normals from one Philox block: one for each of eight neighbouring samples
GROUPS_PER_CHUNK = 16  # groups of eight samples per partial sum of sigma's gradient on the CPU
RADIUS_BITS, ANGLE_BITS = 20, 12
CALL_STRIDE = 65536  # the counter holds a layer's number plus this times its call
WORD_MASK = 0xFFFFFFFF


def philox_words(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """Return four int64 tensors of 32 random bits each, from tensors of 32-bit counter and key words."""
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # the product wraps at 64 bits, as it should
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD_MASK) ^ c1 ^ k0,
            p1 & WORD_MASK,
            ((p0 >> 32) & WORD_MASK) ^ c3 ^ k1,
            p0 & WORD_MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & WORD_MASK, (k1 + WEYL[1]) & WORD_MASK
    return c0, c1, c2, c3


def transform_to_normals(word: Tensor) -> tuple[Tensor, Tensor]:
    """Return two standard normals (float32) from 32 random bits, by Box and Muller."""
    uniform = ((word >> ANGLE_BITS).float() + 0.5) * 2.0**-RADIUS_BITS
    angle = (((word & (2**ANGLE_BITS - 1)).float() + 0.5) * 2.0**-ANGLE_BITS - 0.5) * (2 * math.pi)
    radius = (-2 * uniform.log()).sqrt()
    return radius * angle.cos(), radius * angle.sin()


def random_words(key: Tensor, draws: int, groups: int, neurons: int) -> tuple[Tensor, ...]:
    """Return the four words of every block from the first sample's group on, each (draws, groups, neurons)."""
    seed, start, layer, call, first = key.unbind()

    def count_up(n: int) -> Tensor:
        return torch.arange(n, device=key.device)

    return philox_words(
        count_up(neurons).view(1, 1, -1),
        ((first // LANES + count_up(groups)) & WORD_MASK).view(1, -1, 1),
        ((start + count_up(draws)) & WORD_MASK).view(-1, 1, 1),
        (layer + call * CALL_STRIDE) & WORD_MASK,
        seed & WORD_MASK,
        (seed >> 32) & WORD_MASK,
    )


def standard_normal(key: Tensor, draws: int, batch: int, neurons: int) -> Tensor:
    """Draw the noise of a layer for ``draws`` draws of one batch, one after another.

    Args:
        key: int64 (5,), on any device: seed, pass of the first draw, layer, call, global index of the first sample.
        draws: number of passes K in the rows; draw k is the noise of pass + k.
        batch: samples B in a draw.
        neurons: neurons in a sample, numbered in the order of a contiguous tensor.

    Returns:
        float32 (draws * batch, neurons) on the key's device.
    """
    groups = (batch + LANES - 2) // LANES + 1  # as many as a batch can touch, wherever it starts
    words = random_words(key, draws, groups, neurons)
    normals = [z for word in words for z in transform_to_normals(word)]  # 8 x (K, groups, neurons)
    eps = torch.stack(normals, dim=2).view(draws, groups * LANES, neurons)
    samples = key[4] % LANES + torch.arange(batch, device=key.device)
    return eps.index_select(1, samples).view(draws * batch, neurons)
