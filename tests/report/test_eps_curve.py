import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from noiseprop.errors import RunError
from noiseprop.evaluation.settings import Settings
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.report import eps_curve as module
from noiseprop.report.eps_curve import MULTIPLES, measure_eps_curve

SETTINGS = Settings(pgd_eps=0.2, pgd_step=0.04, pgd_steps=10, lbfgs_step=50.0, vote_draws=16, batch_size=4096)


class Above(nn.Module):
    """Class 1 where the only pixel is above 1/2, by a steep slope."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        z = self.slope * (x.flatten(1) - 0.5)
        return torch.cat([-z, z], dim=1)


def pixels(n=100):
    """Pixels in the middle of n equal parts of [0, 1], each labelled as `Above` sees it."""
    x = ((torch.arange(n) + 0.5) / n).view(n, 1, 1, 1)
    return x, (x.flatten() > 0.5).long()


def test_each_attack_leaves_just_the_images_that_are_further_from_the_boundary_than_eps():
    x, y = pixels()
    curve = measure_eps_curve(Above(), x, y, settings=SETTINGS)
    assert curve.eps == pytest.approx([0, 0.05, 0.1, 0.2, 0.3, 0.4])
    assert (curve.images, curve.draws, curve.score_draws) == (100, 1, 1)
    assert set(curve.accuracy) == {"fgsm", "lbfgs", "pgd"}
    for row in curve.accuracy.values():
        assert row == pytest.approx([1 - 2 * eps for eps in curve.eps])


def test_transfers_are_crafted_on_the_surrogate():
    x, y = pixels()
    turned = Above()
    turned.slope.data.neg_()  # its attacks push away from the boundary of the other
    curve = measure_eps_curve(Above(), x, y, settings=SETTINGS, surrogate=turned)
    assert curve.accuracy["fgsm-transfer"] == curve.accuracy["lbfgs-transfer"] == (1.0,) * 6
    assert curve.accuracy["fgsm"][-1] == pytest.approx(0.2)


def noisy():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    model[1].weight.data = torch.tensor([[-4.0], [4.0]])
    model[1].bias.data = torch.tensor([2.0, -2.0])
    return add_noise(model, "linear", init=1.0, example=torch.zeros(1, 1, 1, 1))


def test_a_noisy_network_is_attacked_over_draws_and_scored_as_expected_of_one():
    x, y = pixels()
    curve = measure_eps_curve(noisy(), x, y, settings=SETTINGS)
    assert (curve.draws, curve.score_draws) == (20, 16)
    # logits differ by 8 (x - 1/2) + N(0, 2): right with probability Phi(8 |x - 1/2| / sqrt 2)
    margin = 8 * (x.flatten() - 0.5).abs() / 2**0.5
    expected = torch.distributions.Normal(0.0, 1.0).cdf(margin).mean()
    assert curve.accuracy["pgd"][0] == pytest.approx(float(expected), abs=4 * 0.3 / 1600**0.5)
    assert all(row[0] > row[3] > row[5] for row in curve.accuracy.values())


def test_the_same_call_gives_the_same_curve_and_leaves_the_noise_where_it_was():
    x, y = pixels(20)
    model = noisy()
    first = measure_eps_curve(model, x, y, settings=SETTINGS)
    one = model(x)
    again = noisy()
    assert measure_eps_curve(again, x, y, settings=SETTINGS) == first
    assert torch.equal(again(x), one)
    assert torch.equal(noisy()(x), one)


def test_a_kept_curve_is_read_for_this_network_these_images_and_settings_alone(tmp_path, monkeypatch):
    x, y = pixels(20)
    path = tmp_path / "curve.json"
    made = measure_eps_curve(Above(), x, y, settings=SETTINGS, kept=path)
    monkeypatch.setattr(module, "craft_images", None)
    assert measure_eps_curve(Above(), x, y, settings=SETTINGS, kept=path) == made
    for model, images, settings in (
        (nn.Sequential(Above()), x, SETTINGS),
        (Above(), x.flip(0), SETTINGS),
        (Above(), x, replace(SETTINGS, pgd_steps=11)),
    ):
        with pytest.raises(TypeError):  # it is made again
            measure_eps_curve(model, images, y, settings=settings, kept=path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d | {"eps": d["eps"][1:]},
        lambda d: d | {"images": -1},
        lambda d: d | {"draws": True},
        lambda d: d | {"accuracy": d["accuracy"] | {"fgsm": [2.0] * 6}},
        lambda d: d | {"accuracy": d["accuracy"] | {"<script>": [0.5] * 6}},
        lambda d: d | {"accuracy": 3},
        lambda d: d | {"format": "other"},
        lambda d: [d],
    ],
)
def test_a_damaged_file_is_made_again(tmp_path, damage):
    x, y = pixels(10)
    path = tmp_path / "curve.json"
    made = measure_eps_curve(Above(), x, y, settings=SETTINGS, kept=path)
    sound = path.read_bytes()
    path.write_text(json.dumps(damage(json.loads(sound))))
    assert measure_eps_curve(Above(), x, y, settings=SETTINGS, kept=path) == made
    assert path.read_bytes() == sound


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b" " * (2**20 + 1), b'{"format": NaN}'])
def test_a_file_that_is_no_json_is_made_again(tmp_path, content):
    x, y = pixels(10)
    path = tmp_path / "curve.json"
    path.write_bytes(content)
    assert len(measure_eps_curve(Above(), x, y, settings=SETTINGS, kept=path).eps) == 1 + len(MULTIPLES)


def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path):
    assert module.check_curve_path(tmp_path / "curve.json") == tmp_path / "curve.json"
    assert module.check_curve_path(tmp_path / "absent" / "curve.json") is None
    x, y = pixels(10)
    with pytest.raises(RunError):
        measure_eps_curve(Above(), x, y, settings=SETTINGS, kept=tmp_path / "absent" / "curve.json")
