import sys

import pytest
import torch
from torch import nn

from noiseprop.attacks.parts import parts
from noiseprop.noise.attach import add_noise, noise_layers
from noiseprop.noise.stream import noise_streams

module = sys.modules[parts.__module__]


def sizes(slices, count):
    return [len(range(count)[part]) for part in slices]


@pytest.mark.parametrize("count", [1, 3, 16, 333, 334, 335, 1000])
def test_all_images_are_in_one_part_each_and_parts_are_about_equal(conv, count):
    found = sizes(parts(conv, torch.zeros(count, 1, 28, 28), 1), count)
    assert sum(found) == count
    assert max(found) <= 335
    assert len(found) == -(-count // 334)
    assert max(found) - min(found) <= len(found)


def test_draws_behind_the_trunk_take_many_images_and_draws_from_the_first_layer_on_few(conv, batch, monkeypatch):
    x, _ = batch  # (16, 2, 8, 8); the first map has 6 * 8 * 8 = 384 values, the last but one 20
    monkeypatch.setattr(module, "_COPIED_VALUES", 20 * 16 * 24)
    head = add_noise(conv, ["4"], example=x, key=1)
    assert sizes(parts(head, x, 20), 16) == [16]
    everywhere = add_noise(conv, ["0"], example=x, key=1)
    assert sizes(parts(everywhere, x, 20), 16) == [1] * 16
    assert sizes(parts(everywhere, x, 1), 16) == [16]


@pytest.mark.filterwarnings("ignore:.* a noisy branch meets a noise-free one")
def test_draws_that_repeat_the_input_count_all_that_is_repeated(batch, monkeypatch):
    class Beside(nn.Module):  # noise on a branch of one value, beside a wide one
        def __init__(self):
            super().__init__()
            self.narrow, self.wide, self.last = nn.Linear(128, 1), nn.Linear(128, 400), nn.Linear(400, 5)

        def forward(self, x):
            x = x.flatten(1)
            return self.last(self.wide(x) * self.narrow(x))

    x, _ = batch
    monkeypatch.setattr(module, "_COPIED_VALUES", 20 * 400 * 4)
    model = add_noise(Beside(), ["narrow"], example=x, key=1)
    assert sizes(parts(model, x, 20), 16) == [4, 4, 4, 4]


def test_looking_does_not_move_the_noise_on(noisy_conv, batch):
    before = [stream.key.clone() for stream in noise_streams(noisy_conv)]
    hooks = [len(layer._forward_hooks) for layer in noise_layers(noisy_conv).values()]
    parts(noisy_conv, batch[0], 20)
    assert all(torch.equal(a, b.key) for a, b in zip(before, noise_streams(noisy_conv), strict=True))
    assert [len(layer._forward_hooks) for layer in noise_layers(noisy_conv).values()] == hooks
