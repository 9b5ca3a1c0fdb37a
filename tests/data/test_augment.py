import pytest
import torch
from torch import Tensor

from noiseprop.data import crop_and_flip
from noiseprop.errors import InputError


def one_by_one(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Apply the same draws to one image and one pixel at a time."""
    B, _, H, W = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, B), generator=generator).tolist()
    mirrored = torch.randint(0, 2, (B,), generator=generator).tolist()
    out = torch.zeros_like(x)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                row = i + offsets[0][b] - padding
                column = (W - 1 - j if mirrored[b] else j) + offsets[1][b] - padding
                if 0 <= row < H and 0 <= column < W:
                    out[b, :, i, j] = x[b, :, row, column]
    return out


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(16, 3, 8, 6), (5, 1, 3, 9), (0, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
def test_equals_the_slow_reference(shape, padding, dtype):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).mul(255).to(dtype)
    got = crop_and_flip(x, padding=padding, generator=torch.Generator().manual_seed(2))
    assert got.dtype == dtype
    assert torch.equal(got, one_by_one(x, padding, torch.Generator().manual_seed(2)))


def test_every_window_and_both_mirrors_come_equally_often():
    marked = torch.zeros(1, 1, 5, 5)
    marked[0, 0, 2, 2] = 1.0  # a dot in the middle shows the offset
    marked[0, 0, 2, 1] = 0.5  # and another one left of it, the mirror
    moved = crop_and_flip(marked.expand(18_000, 1, 5, 5), padding=1, generator=torch.Generator().manual_seed(0))
    dots = (moved == 1.0).flatten(1).float().argmax(1)
    left = (moved == 0.5).flatten(1).float().argmax(1)
    kinds = torch.stack([dots, (left < dots).long()], 1).unique(dim=0, return_counts=True)[1]
    assert len(kinds) == 18  # 3 x 3 windows, mirrored or not
    assert ((kinds - 1000).abs() < 160).all()  # 5 standard deviations of a count


def test_does_not_change_x_or_the_global_generator():
    x = torch.rand(4, 3, 8, 8)
    before, state = x.clone(), torch.get_rng_state()
    crop_and_flip(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"images have shape \(3, 8, 8\), expected \(B, C, H, W\)"):
        crop_and_flip(torch.rand(3, 8, 8), generator=torch.Generator())
    with pytest.raises(InputError, match="padding is -1, expected at least 0"):
        crop_and_flip(torch.rand(1, 3, 8, 8), padding=-1, generator=torch.Generator())
