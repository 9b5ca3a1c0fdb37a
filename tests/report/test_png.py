import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from noiseprop.report.network_views import Sigma
from noiseprop.report.png import (
    encode_heatmap,
    encode_photo,
    encode_saliency,
    encode_scale,
    fold_square,
    shrink_image,
    tile_channels,
)
from noiseprop.report.sigma_maps import draw_sigma_maps


def opened(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_photo_reads_back_to_the_byte(channels, mode):
    image = torch.arange(channels * 20).view(channels, 4, 5) / 255
    picture = opened(encode_photo(image))
    assert picture.mode == mode
    assert np.array_equal(
        np.asarray(picture).reshape(4, 5, -1), np.arange(channels * 20).reshape(channels, 4, 5).transpose(1, 2, 0)
    )


def test_other_channels_are_shown_as_their_mean():
    picture = opened(encode_photo(torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])))
    assert np.asarray(picture).tolist() == [[128] * 3] * 2


def test_heat_rises_in_brightness_from_low_to_high_and_is_clear_where_there_is_nothing():
    values = torch.tensor([[-9.0, 0.0, 0.25, 0.5, 0.75, 1.0, 9.0, float("nan")]])
    pixels = np.asarray(opened(encode_heatmap(values, low=0, high=1)).convert("RGBA")).astype(int)[0]
    light = pixels[:, :3].sum(1)
    assert (np.diff(light[1:6]) > 0).all()
    assert (light[0], light[6]) == (light[1], light[5])
    assert pixels[:, 3].tolist() == [255] * 7 + [0]


def test_equal_values_are_drawn_in_the_middle_of_the_scale():
    flat = np.asarray(opened(encode_heatmap(torch.ones(2, 2), low=1, high=1)).convert("RGB"))
    middle = np.asarray(opened(encode_heatmap(torch.full((2, 2), 0.5), low=0, high=1)).convert("RGB"))
    assert np.array_equal(flat, middle)


def test_channels_lie_side_by_side_and_neurons_row_by_row():
    sheet = tile_channels(torch.arange(12.0).view(3, 2, 2), 2)
    nan = float("nan")
    expected = [[0, 1, nan, 4, 5], [2, 3, nan, 6, 7], [nan] * 5, [8, 9, nan, nan, nan], [10, 11, nan, nan, nan]]
    assert np.array_equal(sheet.numpy(), np.array(expected), equal_nan=True)
    assert fold_square(torch.arange(7.0)).flatten()[:7].tolist() == list(range(7))
    assert fold_square(torch.arange(7.0)).isnan().sum() == 1


def test_the_scale_is_a_gradient_of_rising_brightness():
    stops = [
        sum(map(int, stop.rstrip(")").split(",")))
        for stop in encode_scale().split("rgb(")[1:]
        for stop in [stop.split(")")[0]]
    ]
    assert stops == sorted(stops)
    assert len(stops) == 8


def test_large_images_are_shrunk_by_means_over_their_parts():
    image = torch.arange(128.0 * 256).view(1, 128, 256) / (128 * 256)
    small = shrink_image(image)
    assert small.shape == (1, 32, 64)
    assert torch.allclose(small[0, 3, 5], image[0, 12:16, 20:24].mean())
    assert opened(encode_photo(image)).size == opened(encode_saliency(image[0])).size == (64, 32)
    assert shrink_image(image[:, :64, :64]).shape == (1, 64, 64)


def test_sigma_of_a_feature_map_is_its_mean_and_its_first_channels():
    values = torch.rand(32, 28, 28, generator=torch.Generator().manual_seed(0))
    (found,) = draw_sigma_maps([Sigma("conv1", values)])
    assert (found.shape, found.shown) == ("32 × 28 × 28", "first 16 of 32 channels")
    assert opened(found.mean).size == (28, 28)
    assert opened(found.each).size == (4 * 28 + 3, 4 * 28 + 3)
    assert (found.low, found.middle, found.high) == (values.min(), values.median(), values.max())


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((), "1 neuron, row by row"),
        ((10,), "10 neurons, row by row"),
        ((64, 1, 1), "64 neurons, row by row"),
        ((2, 3, 4, 5), "120 neurons, row by row"),
        ((40_000,), "first 16384 of 40000 neurons, row by row"),
        ((64, 112, 112), "first 1 of 64 channels"),
    ],
)
def test_sigma_of_any_shape_has_a_small_picture(shape, shown):
    (found,) = draw_sigma_maps([Sigma("layer", torch.rand(shape))])
    assert found.shown == shown
    assert len(found.each) < 30_000
