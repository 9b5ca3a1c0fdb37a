import torch
from torch import nn

import noiseprop
from noiseprop.noise import baselines
from noiseprop.noise.objectives import SquareRootBonus


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4)


def test_independent_noise_is_that_of_add_noise_to_the_bit() -> None:
    ours = baselines.learn2perturb(linear(), "", example=torch.zeros(1, 3), key=5)
    same = noiseprop.add_noise(linear(), "", init=0.25, example=torch.zeros(1, 3), key=5)
    x = torch.randn(7, 3)
    assert torch.equal(ours(x), same(x))
    assert ours.noise.sigma.shape == (4,)
    assert noiseprop.sigmas(ours) == [ours.noise.sigma]


def test_shared_noise_has_the_level_and_the_gradient_of_one_draw() -> None:
    net = baselines.learn2perturb(linear(), "", example=torch.zeros(1, 3), shared=True)
    net.noise.sigma.data = torch.tensor([0.5, 1.0, 2.0, 0.0])
    x, clean = torch.randn(6, 3), None
    with noiseprop.sampling(net, "off"):
        clean = net(x).detach()
    drawn = torch.stack([(net(x) - clean)[0].detach() for _ in range(4000)])
    torch.testing.assert_close(drawn.std(0), torch.tensor([0.5, 1.0, 2.0, 0.0]), rtol=0.05, atol=0)
    assert drawn.mean(0).abs().max() < 0.12

    y = net(x)
    eps = ((y - clean)[0] / net.noise.sigma).detach()
    weight = torch.randn(6, 4)
    (gradient,) = torch.autograd.grad((y * weight).sum(), [net.noise.sigma])
    torch.testing.assert_close(gradient[:3], (weight.sum(0) * eps)[:3], rtol=1e-4, atol=1e-5)


def test_its_own_bonus_raises_theta() -> None:
    net = baselines.learn2perturb(linear(), "", example=torch.zeros(1, 3))
    objective = SquareRootBonus(noiseprop.sigmas(net), weight=0.1)
    optimizer = torch.optim.SGD(noiseprop.sigmas(net), 0.1)
    objective.backward(torch.zeros(()))
    optimizer.step()
    objective.project()
    torch.testing.assert_close(net.noise.sigma.detach(), torch.full((4,), 0.25 + 0.1 * 0.1 * 0.5 / 0.5))
