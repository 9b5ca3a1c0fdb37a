import math

import torch
from scipy import stats
from torch import nn

import noiseprop
from noiseprop.noise import baselines


def embedding() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(100, 16)


def test_noise_is_uniform_and_scaled_by_length_and_width() -> None:
    net = baselines.neftune(nn.Sequential(embedding()), alpha=5.0).train()
    for length in (8, 50):
        tokens = torch.randint(100, (200, length))
        with torch.no_grad():
            noise = net(tokens) - net[0].weight[tokens]
        bound = 5.0 / math.sqrt(length * 16)
        assert noise.abs().max() <= bound * 1.0001
        assert stats.kstest((noise / bound).flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
        # the purpose of the scale: the norm of a sequence's noise is alpha / sqrt(3), whatever its length
        norms = noise.flatten(1).norm(dim=1)
        assert abs(float(norms.mean()) - 5 / math.sqrt(3)) < 0.05


def test_training_only_and_nothing_to_learn() -> None:
    net = baselines.neftune(nn.Sequential(embedding()), example=torch.zeros(2, 3, dtype=torch.long)).eval()
    tokens = torch.randint(100, (2, 7))
    assert torch.equal(net(tokens), net[0].weight[tokens])
    assert not noiseprop.sigmas(net)
    net.train()
    net(tokens).sum().backward()
    assert net[0].weight.grad is not None
    assert float(net[0].weight.grad.sum()) == 2 * 7 * 16  # the noise passes the gradient on unchanged
