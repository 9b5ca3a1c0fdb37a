import hashlib

import numpy as np
import pytest
import torch

from noiseprop.data import SPLIT_SEED, Dataset, load, split
from noiseprop.data.split import draw_permutation
from noiseprop.errors import InputError


def numbered(name: str, count: int) -> Dataset:
    """Return a data set whose image i has the four bytes of i as its pixels and i mod 10 as its label."""
    pixels = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 1, 2, 2)
    return Dataset(name, torch.from_numpy(pixels), torch.arange(count) % 10, tuple("0123456789"))


def numbers(part: Dataset) -> np.ndarray:
    return part.images.numpy().reshape(-1, 4).copy().view("<u4").ravel()


@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [
        ("mnist", 70_000, (50_000, 10_000, 10_000)),
        ("mnist-5k", 5_000, (3_572, 714, 714)),
        ("cifar10", 60_000, (40_000, 10_000, 10_000)),
        ("tiny-imagenet", 110_000, (91_668, 9_166, 9_166)),
    ],
)
def test_parts_have_the_papers_sizes_and_cover_all_images_once(name, count, sizes):
    parts = split(numbered(name, count))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == sizes
    assert parts.seed == SPLIT_SEED
    found = np.concatenate([numbers(part) for part in (parts.train, parts.validation, parts.test)])
    assert np.array_equal(np.sort(found), np.arange(count))
    for part in (parts.train, parts.validation, parts.test):
        assert np.array_equal(part.labels.numpy(), numbers(part) % 10)  # labels went with their images


def test_order_of_the_split_is_golden():
    order = draw_permutation(70_000, SPLIT_SEED)
    assert order[:8].tolist() == [64309, 62535, 66869, 4635, 23007, 23928, 44462, 55349]
    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert digest == "6944c51598e7b4fe3dbaef7a504b66a8ece2757a04642a48a6e274857949f7dd"
    assert np.array_equal(np.concatenate([numbers(p) for p in _parts(split(numbered("mnist", 70_000)))]), order)


def test_seeds_differ_and_repeat():
    digits = numbered("mnist", 700)
    assert np.array_equal(numbers(split(digits, 5).test), numbers(split(digits, 5).test))
    assert not np.array_equal(numbers(split(digits, 5).test), numbers(split(digits, 6).test))


def test_split_does_not_touch_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    split(numbered("mnist", 700))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_data_that_lie_in_the_splits_order_are_sliced_without_a_copy():
    shuffled = numbered("tiny-imagenet", 1200)
    shuffled = Dataset(shuffled.name, shuffled.images, shuffled.labels, shuffled.classes, split_seed=SPLIT_SEED)
    parts = split(shuffled)
    assert np.array_equal(np.concatenate([numbers(part) for part in _parts(parts)]), np.arange(1200))
    assert all(
        part.images.untyped_storage().data_ptr() == shuffled.images.untyped_storage().data_ptr()
        for part in _parts(parts)
    )
    assert not np.array_equal(numbers(split(shuffled, seed=1).train), numbers(parts.train))


def test_boxes_go_with_their_images():
    plain = numbered("tiny-imagenet", 120)
    boxes = torch.arange(120).unsqueeze(1).expand(120, 4)
    parts = split(Dataset(plain.name, plain.images, plain.labels, plain.classes, boxes=boxes))
    assert parts.test.boxes is not None
    assert np.array_equal(parts.test.boxes[:, 2].numpy(), numbers(parts.test))


@pytest.mark.parametrize(
    ("dataset", "seed", "sentence"),
    [
        (numbered("digits", 70), 0, "no split ratio is known for 'digits'; name the data set one of mnist"),
        (numbered("mnist", 6), 0, "6 images are too few to split .5, 1, 1.; give at least 7"),
        (numbered("mnist", 70), -1, "the split seed is -1, expected a whole number of at least 0"),
    ],
)
def test_data_that_cannot_be_split_are_refused(dataset, seed, sentence):
    with pytest.raises(InputError, match=sentence):
        split(dataset, seed)


@pytest.mark.real_data
def test_mnist_test_set_is_golden(real_data):
    test = split(load("mnist", real_data)).test
    assert (
        hashlib.sha256(test.images.numpy().tobytes()).hexdigest()
        == "2d3db52158c0e2de6db4489d1b76dd0edace82728a1a0bc75ebdf313cb7beffb"
    )


def _parts(parts):
    return parts.train, parts.validation, parts.test
