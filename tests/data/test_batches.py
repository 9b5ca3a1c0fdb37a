import pytest
import torch

from noiseprop.data import Dataset, batches
from noiseprop.errors import InputError


@pytest.fixture
def dataset() -> Dataset:
    """256 images; image i has the grey value i and the label i."""
    values = torch.arange(256, dtype=torch.uint8)
    return Dataset(
        "x", values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), values.long(), tuple(map(str, range(256)))
    )


def test_in_order_without_a_generator(dataset):
    got = list(batches(dataset, 100, generator=None))
    assert [len(y) for _, y in got] == [100, 100, 56]
    assert torch.cat([y for _, y in got]).tolist() == list(range(256))
    x = torch.cat([x for x, _ in got])
    assert x.dtype == torch.float32
    expected = torch.tensor([i / 255 for i in range(256)])  # each value rounded once, from float64
    assert torch.equal(x, expected.view(-1, 1, 1, 1).expand(-1, 1, 2, 2))


def test_shuffled_by_the_generator(dataset):
    def labels(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([y for _, y in batches(dataset, 100, generator=generator)]).tolist()

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)
    assert labels(0) == torch.randperm(256, generator=torch.Generator().manual_seed(0)).tolist()
    for x, y in batches(dataset, 100, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(x[:, 0, 0, 0], y.float() / 255)  # labels went with their images


def test_second_epoch_of_one_generator_differs(dataset):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat([y for _, y in batches(dataset, 64, generator=generator)]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_last_batch_can_be_dropped(dataset):
    got = [y for _, y in batches(dataset, 100, generator=None, drop_last=True)]
    assert [len(y) for y in got] == [100, 100]
    assert len(list(batches(dataset, 128, generator=None, drop_last=True))) == 2
    assert list(batches(dataset, 300, generator=None, drop_last=True)) == []


def test_batches_are_the_callers_own(dataset):
    for x, y in batches(dataset, 100, generator=None):
        x.zero_()
        y.zero_()
    assert dataset.labels.tolist() == list(range(256))
    assert int(dataset.images.max()) == 255


def test_augment_gets_each_batch_and_the_generator(dataset):
    seen = []

    def augment(x, *, generator):
        seen.append((tuple(x.shape), generator))
        return x + 1

    generator = torch.Generator().manual_seed(0)
    got = list(batches(dataset, 200, generator=generator, augment=augment))
    assert seen == [((200, 1, 2, 2), generator), ((56, 1, 2, 2), generator)]
    assert all(torch.equal(x[:, 0, 0, 0], y.float() / 255 + 1) for x, y in got)


def test_leaves_the_global_generator_alone(dataset):
    state = torch.get_rng_state()
    list(batches(dataset, 100, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_arguments_are_refused_before_the_first_batch(dataset):
    with pytest.raises(InputError, match="the batch size is 0, expected at least 1"):
        batches(dataset, 0, generator=None)
    with pytest.raises(InputError, match="generator is None"):
        batches(dataset, 1, generator=None, augment=lambda x, *, generator: x)
