import pytest

from noiseprop.errors import RunError
from noiseprop.training import Epoch, read_metrics

SIGMA = {"mean": 1.0, "std": 0.1, "min": 0.5, "max": 2}
LINE = {
    "epoch": 3,
    "train_loss": 0.5,
    "train_accuracy": 0.9,
    "validation_loss": 0.6,
    "validation_accuracy": 1,
    "sigma": {"fc1.noise": SIGMA},
    "seconds": 0.2,
}


def test_a_sound_line_is_an_epoch():
    assert Epoch.from_json(LINE).sigma["fc1.noise"]["max"] == 2
    assert Epoch.from_json({**LINE, "sigma": {}}).train_loss == 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_loss": "0.5"}, "epoch 3 has train_loss '0.5', not a finite number"),
        ({"train_loss": float("nan")}, "has train_loss nan"),
        ({"seconds": None}, "has seconds None"),
        ({"validation_accuracy": True}, "has validation_accuracy True"),
        ({"sigma": []}, "does not tell mean, std, min, max of each sigma"),
        ({"sigma": {"fc1.noise": 1.0}}, "does not tell"),
        ({"sigma": {"fc1.noise": {"mean": 1.0}}}, "does not tell"),
        ({"sigma": {"fc1.noise": {**SIGMA, "std": "wide"}}}, "has std 'wide'"),
        ({"colour": "red"}, "has the fields"),
    ],
)
def test_a_wrong_line_is_one_sentence(change, says):
    with pytest.raises(RunError, match=says):
        Epoch.from_json({**LINE, **change})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_damage(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1, "train_loss": {value}}}\n')
    with pytest.raises(RunError, match="line 1 is damaged"):
        read_metrics(tmp_path)
