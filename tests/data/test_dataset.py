import pytest
import torch

from noiseprop.data import Dataset
from noiseprop.errors import InputError

IMAGES = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"images": IMAGES.float()}, "images must be uint8 of shape .N, C, H, W., not torch.float32"),
        ({"images": IMAGES[:, 0]}, "images must be uint8"),
        ({"labels": LABELS[:3]}, r"labels must be int64 of shape \(4,\), not torch.int64 of shape \(3,\)"),
        ({"labels": LABELS.int()}, "labels must be int64"),
        ({"labels": LABELS + 1}, "labels run from 1 to 2, expected 0 to 1"),
        ({"labels": LABELS - 1}, "labels run from -1 to 0, expected 0 to 1"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes must have shape \(4, 4\)"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Dataset(**{"name": "x", "images": IMAGES, "labels": LABELS, "classes": ("a", "b"), **fields})


def test_some_rows():
    dataset = Dataset("x", IMAGES, LABELS, ("a", "b"), boxes=torch.arange(16).view(4, 4), split_seed=3)
    some = dataset[torch.tensor([3, 1])]
    assert (len(some), some.labels.tolist(), some.split_seed) == (2, [0, 1], None)
    assert some.boxes is not None
    assert some.boxes[:, 0].tolist() == [12, 4]
    assert dataset[1:3].images.data_ptr() == dataset.images[1:].data_ptr()
