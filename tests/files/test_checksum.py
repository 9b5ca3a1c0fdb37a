import json

import pytest
import torch

from noiseprop.errors import RunError
from noiseprop.files import checksum as seal
from noiseprop.files.atomic import write_json
from noiseprop.files.checksum import sealed, tensors_digest, unsealed
from noiseprop.training.run_folder import append_metrics, open_run

DOCUMENT = {"epochs": 3, "lr": 1e-3, "betas": (0.9, 0.999), "by epoch": {10: 0.5, 2: 0.25}, "note": "σ", "none": None}


def as_read(document):
    return json.loads(json.dumps(document))


def test_what_was_sealed_comes_back():
    assert unsealed(as_read(sealed(DOCUMENT))) == as_read(DOCUMENT)
    assert sealed(as_read(DOCUMENT))["sha256"] == sealed(DOCUMENT)["sha256"]
    shuffled = dict(reversed(sealed(DOCUMENT).items()))
    assert unsealed(as_read(shuffled)) == as_read(DOCUMENT)
    assert unsealed({"epochs": 3}) == {"epochs": 3}


@pytest.mark.parametrize(
    "change", [{"epochs": 4}, {"epochs": 3.5}, {"epochs": "3"}, {"note": "s"}, {"more": 1}, {"sha256": None}]
)
def test_what_was_changed_is_refused(change):
    with pytest.raises(ValueError, match="its checksum does not fit"):
        unsealed({**as_read(sealed(DOCUMENT)), **change})


def test_a_seal_under_another_name_is_damage():
    document = as_read(sealed(DOCUMENT))
    document["sha257"] = document.pop("sha256")
    with pytest.raises(ValueError, match="its checksum does not fit"):
        unsealed(document)
    assert unsealed({**as_read(DOCUMENT), "sha257": "ab" * 32})["sha257"] == "ab" * 32


def test_many_names_like_the_seal_cost_one_digest(monkeypatch):
    digests = []
    monkeypatch.setattr(seal, "_digest", lambda document: digests.append(document) or "")
    document = {f"sha25{chr(0x4E00 + number)}": "ab" * 32 for number in range(1000)}
    assert unsealed(document) == document
    assert len(digests) == 1


def test_tensors_are_told_apart_by_name_type_shape_and_bits():
    one = torch.arange(6.0)
    same = {"a": one.view(2, 3).t().contiguous().t()}  # laid out otherwise
    assert tensors_digest(same) == tensors_digest({"a": one.view(2, 3)})
    others = [{"a": one}, {"b": one.view(2, 3)}, {"a": one.view(2, 3).int()}, {"a": one.view(2, 3) + 1e-6}, {}]
    others += [{"a": torch.tensor(1.0)}, {"a": torch.tensor([1.0])}, {"a": torch.zeros(0)}]
    assert len({tensors_digest(tensors) for tensors in (same, *others)}) == 9


def test_a_run_that_has_lost_its_checkpoint_does_not_begin_again(tmp_path):
    open_run(tmp_path, {"seed": 0}, resume=False)
    append_metrics(tmp_path, {"epoch": 1})
    open_run(tmp_path, {"seed": 0}, resume=True)  # killed before its first checkpoint
    append_metrics(tmp_path, {"epoch": 2})
    with pytest.raises(
        RunError, match=r"state\.safetensors is missing, without which .* move .* away and train again$"
    ):
        open_run(tmp_path, {"seed": 0}, resume=True)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RunError, match=r"state\.safetensors is missing"):
        open_run(tmp_path, {"seed": 0}, resume=True)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "config.json", {"seed": 0})
    assert list(tmp_path.iterdir()) == []
