import json

import pytest
import torch

from noiseprop.files.atomic import write_json
from noiseprop.files.checksum import add_checksum, hash_tensors, verify_checksum

DOCUMENT = {"epochs": 3, "lr": 1e-3, "betas": (0.9, 0.999), "by epoch": {10: 0.5, 2: 0.25}, "note": "σ", "none": None}


def as_read(document):
    return json.loads(json.dumps(document))


def test_a_document_with_its_checksum_comes_back():
    assert verify_checksum(as_read(add_checksum(DOCUMENT))) == as_read(DOCUMENT)
    assert add_checksum(as_read(DOCUMENT))["sha256"] == add_checksum(DOCUMENT)["sha256"]
    shuffled = dict(reversed(add_checksum(DOCUMENT).items()))
    assert verify_checksum(as_read(shuffled)) == as_read(DOCUMENT)


@pytest.mark.parametrize(
    "change", [{"epochs": 4}, {"epochs": 3.5}, {"epochs": "3"}, {"note": "s"}, {"more": 1}, {"sha256": None}]
)
def test_a_changed_document_is_refused(change):
    with pytest.raises(ValueError, match="its checksum does not match"):
        verify_checksum({**as_read(add_checksum(DOCUMENT)), **change})


@pytest.mark.parametrize("name", [None, "sha257", "SHA256"])
def test_a_missing_or_renamed_checksum_is_refused(name):
    document = as_read(add_checksum(DOCUMENT))
    checksum = document.pop("sha256")
    if name is not None:
        document[name] = checksum
    with pytest.raises(ValueError, match="its checksum is missing"):
        verify_checksum(document)


def test_hashes_of_tensors_differ_by_name_type_shape_and_bits():
    one = torch.arange(6.0)
    same = {"a": one.view(2, 3).t().contiguous().t()}  # laid out otherwise
    assert hash_tensors(same) == hash_tensors({"a": one.view(2, 3)})
    others = [{"a": one}, {"b": one.view(2, 3)}, {"a": one.view(2, 3).int()}, {"a": one.view(2, 3) + 1e-6}, {}]
    others += [{"a": torch.tensor(1.0)}, {"a": torch.tensor([1.0])}, {"a": torch.zeros(0)}]
    assert len({hash_tensors(tensors) for tensors in (same, *others)}) == 9


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "config.json", {"seed": 0})
    assert list(tmp_path.iterdir()) == []
