import json

import msgspec
import pytest

from noiseprop.errors import RunError
from noiseprop.files.checksum import add_checksum
from noiseprop.training import Epoch, SigmaStatistics, read_metrics

SIGMA = {"mean": 1.0, "std": 0.1, "min": 0.5, "max": 2}
LINE = {
    "epoch": 1,
    "train_loss": 0.5,
    "train_accuracy": 0.9,
    "validation_loss": 0.6,
    "validation_accuracy": 1,
    "sigma": {"fc1.noise": SIGMA},
    "seconds": 0.2,
}


def write_line(folder, line):
    (folder / "metrics.jsonl").write_text(json.dumps(add_checksum(line)) + "\n")


def test_a_sound_line_is_an_epoch(tmp_path):
    write_line(tmp_path, LINE)
    (epoch,) = read_metrics(tmp_path)
    assert epoch == Epoch(1, 0.5, 0.9, 0.6, 1.0, {"fc1.noise": SigmaStatistics(1.0, 0.1, 0.5, 2.0)}, 0.2)
    assert msgspec.to_builtins(epoch) == LINE
    write_line(tmp_path, {**LINE, "sigma": {}})
    assert read_metrics(tmp_path)[0].sigma == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_loss": "0.5"}, r"Expected `float`, got `str` - at `\$.train_loss`"),
        ({"seconds": None}, r"got `null` - at `\$.seconds`"),
        ({"seconds": -1}, r">= 0.0 - at `\$.seconds`"),
        ({"validation_accuracy": True}, r"got `bool` - at `\$.validation_accuracy`"),
        ({"validation_accuracy": 1.5}, r"<= 1.0 - at `\$.validation_accuracy`"),
        ({"sigma": []}, r"Expected `object`, got `array` - at `\$.sigma`"),
        ({"sigma": {"fc1.noise": 1.0}}, r"Expected `object`, got `float`"),
        ({"sigma": {"fc1.noise": {"mean": 1.0}}}, "missing required field `std`"),
        ({"sigma": {"fc1.noise": {**SIGMA, "std": "wide"}}}, r"got `str` - at `\$.sigma\[...\].std`"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"epoch": 2}, "should be epoch 1"),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path, change, says):
    write_line(tmp_path, {**LINE, **change})
    with pytest.raises(RunError, match=says) as raised:
        read_metrics(tmp_path)
    assert "metrics.jsonl, line 1" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_line_that_was_changed_after_it_was_written_is_damage(tmp_path):
    write_line(tmp_path, LINE)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"train_loss": 0.5', '"train_loss": 0.4'))
    with pytest.raises(RunError, match="line 1 is damaged"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_damage(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1, "train_loss": {value}}}\n')
    with pytest.raises(RunError, match="line 1 is damaged"):
        read_metrics(tmp_path)
