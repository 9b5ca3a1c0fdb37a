import pytest
import torch
from torch import nn
from torch.nn import functional

from noiseprop.attacks.lbfgs import lbfgs
from noiseprop.errors import InputError


def torchs(model, x, y, step, steps):
    """torch.optim.LBFGS on one image, never stopping early, then the clamp."""
    z = x[None].clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z],
        lr=step,
        max_iter=steps,
        max_eval=10 * steps,
        history_size=steps,
        tolerance_grad=0,
        tolerance_change=-float("inf"),
    )

    def closure():
        optimizer.zero_grad()
        loss = -functional.cross_entropy(model(z), y[None])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.state[z]["n_iter"] == steps
    return z.detach().clamp(0, 1)[0]


@pytest.fixture
def smooth():
    """Network without kinks, so that its curvature can be estimated."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 20), nn.Sigmoid(), nn.Linear(20, 5)).double()


@pytest.mark.parametrize("net", ["smooth", "conv"])
@pytest.mark.parametrize(("step", "steps"), [(0.5, 1), (0.5, 2), (0.5, 10), (0.05, 20)])
def test_equal_to_torch_on_single_images(request, batch, net, step, steps):
    model, x, y = request.getfixturevalue(net).double(), batch[0].double(), batch[1]
    expected = torch.stack([torchs(model, image, label, step, steps) for image, label in zip(x, y, strict=True)])
    assert (expected - x).abs().amax((1, 2, 3)).min() > 1e-3
    torch.testing.assert_close(lbfgs(model, x, y, step=step, steps=steps), expected, atol=1e-9, rtol=0)


def test_an_image_does_not_depend_on_its_batch(smooth, batch):
    x, y = batch[0].double(), batch[1]
    together = lbfgs(smooth, x, y, step=0.5, steps=10)
    alone = torch.cat([lbfgs(smooth, x[i : i + 1], y[i : i + 1], step=0.5, steps=10) for i in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


def test_pairs_without_curvature_are_skipped(batch):
    """Check that a linear loss has no curvature anywhere: every step but the first has length step * |g|."""

    class Linear(nn.Module):  # CE is made linear by a softmax that is always (1/2, 1/2) but for its gradient
        def forward(self, x):
            v = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([v - v.detach(), torch.zeros_like(v)], 1)

    x = torch.full((1, 1, 2, 2), 0.9, dtype=torch.float64)
    # CE with label 0 falls by 1/2 per unit of each pixel, |g|_1 = 2: first step 1/2 of step * 1/2, then whole ones
    expected = 0.9 - 0.1 * 0.5 * (0.5 + 1 + 1)
    x_adv = lbfgs(Linear(), x, torch.tensor([0]), step=0.1, steps=3)
    torch.testing.assert_close(x_adv, torch.full_like(x, expected))


def test_an_image_with_zero_gradient_stays_and_the_others_continue(smooth, batch):
    x, y = batch[0].double(), batch[1]

    others = torch.arange(len(x)) != 3

    class Blind(nn.Module):  # does not see image 3
        def forward(self, x):
            return smooth(x) * others[:, None]

    x_adv = lbfgs(Blind(), x, y, step=0.05, steps=5)
    assert torch.equal(x_adv[3], x[3])
    torch.testing.assert_close(x_adv[others], lbfgs(smooth, x, y, step=0.05, steps=5)[others])
    assert (x_adv[others] - x[others]).abs().amax((1, 2, 3)).min() > 1e-3


def test_raises_the_loss_in_float32(conv, batch):
    x, y = batch
    x_adv = lbfgs(conv, x, y, step=0.5, steps=10)
    assert x_adv.dtype == torch.float32
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    before, after = (functional.cross_entropy(conv(v), y, reduction="none") for v in (x, x_adv))
    assert (after > before).all()


def test_steps_that_grow_without_bound_end_in_finite_images():
    """Check that steps which grow with the distance end before the output of a plain layer overflows."""

    class Runaway(nn.Module):
        def forward(self, x):
            sizes.append(float(x.detach().abs().max()))
            v = torch.log1p(1e4 * x.abs().sum(1, keepdim=True))
            return torch.cat([-v, v], 1)

    sizes = []
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    x_adv = lbfgs(Runaway(), x, y, step=1e18, steps=30)
    assert max(sizes) > 1e17
    assert torch.isfinite(x_adv).all()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("change", [{"step": -1}, {"steps": 0}])
def test_bad_settings_raise_an_error(conv, batch, change):
    with pytest.raises(InputError, match="expected a"):
        lbfgs(conv, *batch, **{"step": 0.5, "steps": 2, **change})
