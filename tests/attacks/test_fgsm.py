import foolbox
import pytest
import torch
import torchattacks

from noiseprop.attacks.fgsm import fgsm
from noiseprop.errors import InputError


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_model_is_attacked_at_its_exact_optimum(linear, linear_batch, linear_optimum, eps, dtype):
    x, y = linear_batch[0].to(dtype), linear_batch[1]
    x_adv = fgsm(linear.to(dtype), x, y, eps=eps)
    assert x_adv.dtype == dtype
    assert torch.equal(x_adv, linear_optimum(x, y, eps))


def test_equal_to_torchattacks(conv, batch):
    x, y = batch
    expected = torchattacks.FGSM(conv, eps=0.07)(x, y)
    assert (expected - x).abs().max() > 0.069
    torch.testing.assert_close(fgsm(conv, x, y, eps=0.07), expected, atol=1e-7, rtol=0)


def test_equal_to_foolbox(conv, batch):
    x, y = batch
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, expected, _ = attack(foolbox.PyTorchModel(conv, bounds=(0, 1)), x, y, epsilons=0.07)
    torch.testing.assert_close(fgsm(conv, x, y, eps=0.07), expected, atol=1e-7, rtol=0)


def test_negative_eps_raises_an_error(conv, batch):
    with pytest.raises(InputError, match=r"eps is -0\.1, expected a finite number of at least 0"):
        fgsm(conv, *batch, eps=-0.1)
