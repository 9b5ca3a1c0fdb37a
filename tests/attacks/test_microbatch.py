import sys

import pytest
import torch
from torch import nn

from noiseprop.attacks.microbatch import split_batch
from noiseprop.models import cnn, mlp
from noiseprop.noise.attach.add_noise import add_noise, noise_layers
from noiseprop.noise.stream import find_sources

module = sys.modules[split_batch.__module__]


def sizes(slices, count):
    return [len(range(count)[part]) for part in slices]


@pytest.mark.parametrize("count", [1, 3, 167, 168, 334, 335, 1000])
def test_all_images_are_in_one_part_each_and_parts_are_about_equal(count):
    found = sizes(split_batch(cnn(), torch.zeros(count, 1, 28, 28), 1), count)  # its widest map has 32 * 28 * 28 values
    assert sum(found) == count
    assert len(found) == -(-count // 334)
    assert max(found) - min(found) <= len(found)


def test_a_narrow_network_takes_more_images_at_once(monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 0)
    assert sizes(split_batch(mlp(), torch.zeros(1000, 1, 28, 28), 1), 1000) == [1000]


def test_a_small_batch_costs_no_trial_pass():
    split_batch(None, torch.zeros(128, 1, 28, 28), 1)


def test_draws_behind_the_trunk_take_many_images_and_draws_from_the_first_layer_on_few(conv, batch, monkeypatch):
    x, _ = batch  # (16, 2, 8, 8); the first map has 6 * 8 * 8 = 384 values, the last but one 20
    monkeypatch.setattr(module, "_MAP_VALUES", 20 * 20 * 16)
    head = add_noise(conv, ["4"], example=x, key=1)
    assert sizes(split_batch(head, x, 20), 16) == [16]
    everywhere = add_noise(conv, ["0"], example=x, key=1)
    assert sizes(split_batch(everywhere, x, 20), 16) == [1] * 16
    assert sizes(split_batch(everywhere, x, 1), 16) == [16]


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
    monkeypatch.setattr(module, "_MAP_VALUES", 20 * 400 * 4)
    model = add_noise(Beside(), ["narrow"], example=x, key=1)
    assert sizes(split_batch(model, x, 20), 16) == [4, 4, 4, 4]


def test_the_trial_pass_leaves_no_trace(noisy_conv, batch):
    def state():
        layers = noise_layers(noisy_conv).values()
        return [source.key.tolist() for source in find_sources(noisy_conv)], [len(m._forward_hooks) for m in layers]

    before = state()
    split_batch(noisy_conv, batch[0], 20)
    assert state() == before
