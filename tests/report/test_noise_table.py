from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from noiseprop.noise.diagnostics.inspect_noise import LayerNoise
from noiseprop.report.noise_table import draw_noise, format_noise_table, list_noise_figures, write_noise_tensors


def layer(path: str = "fc1.noise", learned: bool = True) -> LayerNoise:
    sigma = torch.linspace(0.1, 1.1, 11, dtype=torch.float64)
    spread = torch.full((11,), 2.0, dtype=torch.float64)
    gradient = torch.tensor([1.0] * 6 + [-1.0] * 3 + [0.01] * 2, dtype=torch.float64)
    noise = torch.full((11,), 0.5, dtype=torch.float64)
    return LayerNoise(path, sigma, spread, gradient if learned else None, noise if learned else None, batches=16)


def test_table_of_known_figures() -> None:
    lines = format_noise_table([layer(), layer("fixed.noise", learned=False)]).splitlines()
    assert lines[0].split("  ")[0] == "layer"
    fc1 = [cell.strip() for cell in lines[1].split("  ") if cell.strip()]
    assert fc1 == ["fc1", "11", "0.6 [0.2, 1]", "0.3 [0.1, 0.5]", "2", "55%", "27%"]
    assert lines[2].split()[-3:] == ["fixed", "-", "-"]


def test_neurons_without_signal_count_in_the_table() -> None:
    no_signal = LayerNoise("a.noise", torch.ones(4), torch.tensor([0.0, 0.0, 0.0, 0.5]), None, None, 2)
    assert "inf [2, inf]" in format_noise_table([no_signal])


def test_the_table_of_a_resnet_fits_80_columns_and_writes_numbers_out() -> None:
    sigma = torch.tensor([0.0021, 0.35, 12.0], dtype=torch.float64)
    deep = LayerNoise("stages.3.1.conv2.noise", sigma, sigma / 1944, torch.ones(3), torch.full((3,), 0.004), 64)
    lines = format_noise_table([deep]).splitlines()
    assert max(map(len, lines)) <= 80
    assert "0.35 [0.0021, 12]  1900 [1900, 1900]  250" in lines[1]


def test_figures_for_programs_are_those_of_the_table() -> None:
    one, fixed = list_noise_figures([layer(), layer("fixed.noise", learned=False)])
    assert one["layer"] == "fc1"
    assert (one["sigmas"], one["learned"], fixed["learned"]) == (11, True, False)
    assert one["sigma"] == pytest.approx([0.2, 0.6, 1.0])
    assert one["own_std"] == [2, 2, 2]
    assert one["sigma_over_own_std"] == pytest.approx([0.1, 0.3, 0.5])
    assert one["gradient_snr"] == [-2, 2, 2]  # 3 of -2, 2 of 0.02, 6 of 2
    assert (one["wants_less"], one["wants_more"]) == (6 / 11, 3 / 11)
    assert "gradient_snr" not in fixed
    no_signal = LayerNoise("a.noise", torch.ones(4), torch.tensor([0.0, 0.0, 0.0, 0.5]), None, None, 2)
    assert list_noise_figures([no_signal])[0]["sigma_over_own_std"] == [2, None, None]


def test_saved_figures_read_back(tmp_path: Path) -> None:
    write_noise_tensors([layer(), layer("fixed.noise", learned=False)], tmp_path / "noise.safetensors")
    back = load_file(tmp_path / "noise.safetensors")
    assert set(back) == {f"fc1.{k}" for k in ("sigma", "own_std", "gradient", "snr")} | {"fixed.sigma", "fixed.own_std"}
    assert torch.equal(back["fc1.snr"], layer().snr)


@pytest.mark.parametrize("learned", [True, False])
def test_picture_is_the_same_again_and_shows_the_levels(tmp_path: Path, learned: bool) -> None:
    for name in ("a.png", "b.png"):
        draw_noise([layer(learned=learned), layer("fc2.noise", learned)], tmp_path / name, title="a run")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3).astype(int)

    def drawn(colour: tuple[int, int, int]) -> int:
        return int((np.abs(pixels - colour).max(1) < 6).sum())

    assert drawn((0, 0, 0)) > 500  # text and medians
    orange, blue, red = (242, 207, 128), (128, 184, 216), (230, 158, 102)  # on white, at the points' opacity
    assert drawn(orange) > 20
    assert drawn(blue) > 20
    assert (drawn(red) > 20) == learned


def test_no_noise_left_and_no_signal_can_be_drawn(tmp_path: Path) -> None:
    zero = LayerNoise("a.noise", torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(3), 4)
    draw_noise([zero], tmp_path / "zero.png")
    assert "nan" in format_noise_table([zero])
    assert (tmp_path / "zero.png").stat().st_size > 5000
