import pytest
import torch
from torch import nn

from noiseprop.attacks.fgsm import fgsm
from noiseprop.attacks.validation import linf_ball
from noiseprop.errors import InputError


@pytest.mark.parametrize("bad", [1.5, -0.01, float("nan"), float("inf")])
def test_one_pixel_outside_the_range_raises_an_error(conv, batch, bad):
    x, y = batch
    x[3, 1, 2, 2] = bad
    with pytest.raises(InputError, match=r"images lie in \[.*\], expected \[0, 1\]"):
        fgsm(conv, x, y, eps=0.1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 2, 8, 8, dtype=torch.uint8), r"dtype torch\.uint8"),
        (torch.zeros(0, 2, 8, 8), r"shape \(0, 2, 8, 8\)"),
        (torch.zeros(8), r"shape \(8,\)"),
    ],
)
def test_images_of_another_form_raise_an_error(conv, x, message):
    with pytest.raises(InputError, match=message):
        fgsm(conv, x, torch.zeros(len(x), dtype=torch.int64), eps=0.1)


@pytest.mark.parametrize(
    "y",
    [torch.zeros(15, dtype=torch.int64), torch.zeros(16, 5, dtype=torch.int64), torch.zeros(16), torch.zeros(16) > 0],
)
def test_labels_of_another_form_raise_an_error(conv, batch, y):
    with pytest.raises(InputError, match=r"labels have dtype .* expected integers of shape \(16,\)"):
        fgsm(conv, batch[0], y, eps=0.1)


@pytest.mark.parametrize(("bad", "span"), [(5, r"\d\.\.5"), (-1, r"-1\.\."), (-100, r"-100\.\.")])
def test_labels_out_of_range_raise_an_error(conv, batch, bad, span):
    x, y = batch
    y[7] = bad
    with pytest.raises(InputError, match=rf"labels lie in {span}.* the model has 5 classes"):
        fgsm(conv, x, y, eps=0.1)


def test_narrow_integers_serve_as_labels(conv, batch):
    x, y = batch
    assert torch.equal(fgsm(conv, x, y.to(torch.uint8), eps=0.1), fgsm(conv, x, y, eps=0.1))


class Returning(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x.flatten(1)[:, :5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * float("nan"), "NaN or infinite logits"),
        (lambda v: v / 0, "NaN or infinite logits"),
        (lambda v: v.masked_fill(torch.arange(80).view(16, 5) == 42, float("inf")), "NaN or infinite logits"),
        (lambda v: v[:, 0], r"shape \(16,\) for 16 images, expected floating point logits \(16, classes\)"),
        (lambda v: v[:-1], r"shape \(15, 5\) for 16 images"),
        (lambda v: v[..., None, None], r"shape \(16, 5, 1, 1\) for 16 images"),
        (lambda v: v.argmax(-1, keepdim=True), r"torch\.int64 of shape \(16, 1\)"),
        (lambda v: {"logits": v}, "returned dict for 16 images"),
        (lambda v: v.detach(), "carry no gradient"),
        (lambda v: torch.zeros_like(v, requires_grad=True), "carry no gradient"),
    ],
)
def test_invalid_logits_raise_an_error(batch, change, message):
    with pytest.raises(InputError, match=message):
        fgsm(Returning(change), *batch, eps=0.1)


def test_the_ball_is_cut_to_the_pixels_range():
    low, high = linf_ball(torch.tensor([[0.0, 0.3, 1.0]]), 0.2)
    torch.testing.assert_close(low, torch.tensor([[0.0, 0.1, 0.8]]))
    torch.testing.assert_close(high, torch.tensor([[0.2, 0.5, 1.0]]))
