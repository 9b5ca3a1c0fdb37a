import copy
import json
import random
import re
from typing import Any

import pytest
from PIL import Image
from scipy.stats import t as student_t

from noiseprop.errors import RunError
from noiseprop.evaluation.settings import ATTACKS, CONDITIONS, CORRUPTIONS
from noiseprop.paper.claims import CLAIMS, Claim, compare, holm, welch
from noiseprop.paper.figures import draw_figure_3, figure_3
from noiseprop.paper.page import page
from noiseprop.paper.protocol import TABLES
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import accuracy, read_record, runs_of, spread, write_record
from noiseprop.paper.tables import findings_table, main_table, markdown, states_table


def figures(noisy: bool, right: int) -> dict[str, list[float]]:
    """Counts of 1,000 images: `right` clean ones, fewer under attack, and one less by state and draw."""
    found: dict[str, list[float]] = {}
    for condition in CONDITIONS:
        for place, state in enumerate(("off", "one", "vote") if noisy else ("off",)):
            for draws in (1, 20) if condition in ATTACKS and state != "off" else (0,):
                for severity in range(1, 6) if condition in CORRUPTIONS else (0,):
                    loss = 300 if condition in ATTACKS else 10 * severity
                    found[f"{condition}/{state}/{draws}/{severity}"] = [right - loss - place - draws, 1000, 0.0, 1.0]
    return found


@pytest.fixture
def record() -> dict[str, Any]:
    """Table 3 as it could come out: three seeds that differ by 2 images, learned noise 30 images better than none."""
    runs: list[dict[str, Any]] = []
    for seed in range(3):
        for row in TABLES["table3"]:
            noisy = row.model != "MLP"
            right = {"MLP": 900, "MLP+": 860, "MLPN": 930}[row.model] + 2 * seed
            curve = [0.5, 0.3 + seed / 100, 0.1]
            sigma = {"mean": [1.0, 0.5, 0.25], "min": [1.0, 0.4, 0.1], "max": [1.0, 0.6, 0.5]}
            fixed = {name: [1.0, 1.0, 1.0] for name in sigma}
            course = {"train_loss": curve, "train_accuracy": [0.9] * 3, "validation_loss": curve}
            course |= {"validation_accuracy": [0.9, 0.95, 0.96], "test_accuracy": [0.8, 0.9, right / 1000]}
            course["sigma"] = {"fc1": sigma if row.model == "MLPN" else fixed} if noisy else {}
            outcome = "failed" if noisy and seed == 0 else "passed" if noisy else "not applicable"
            finding = {"name": "noise", "outcome": outcome, "sentence": "So it is."}
            run = {"row": row.name, "seed": seed, "noisy": noisy, "seconds_per_epoch": 0.5 + 0.1 * noisy}
            runs.append(run | {"course": course, "figures": figures(noisy, right), "findings": [finding]})
    settings = {"attack_draws": [1, 20], "attack_images": 1000}
    data = {"name": "mnist", "test_images": 10_000, "digest": "0"}
    head = {"format": "noiseprop reproduction, version 1", "table": "table3", "protocol": "paper", "departures": []}
    head |= {"data": data, "epochs": 3, "precision": "fp32", "seeds": [0, 1, 2], "settings": settings, "made_with": {}}
    return head | {"runs": runs}


def test_the_printed_tables_hold_the_numbers_that_the_text_quotes():
    """Section 4.2: 0.336 vs 0.28, 0.568 vs 0.324, 0.275 vs 0.207, ... for the MLP; 0.87 vs 0.774 is a misprint."""
    learned, plain = PUBLISHED["table3"]["MLPN, Sigmoid"], PUBLISHED["table3"]["MLP, Sigmoid"]
    quoted = {"fgsm": (0.336, 0.28), "lbfgs": (0.568, 0.324), "pgd": (0.275, 0.207), "fgsm-transfer": (0.465, 0.41)}
    quoted |= {"lbfgs-transfer": (0.788, 0.749), "gaussian_noise": (0.946, 0.883), "impulse_noise": (0.944, 0.783)}
    quoted |= {"glass_blur": (0.92, 0.885), "contrast": (0.71, 0.676)}
    assert {name: (learned[name], plain[name]) for name in quoted} == quoted
    learned, plain = PUBLISHED["table4"]["CNN-MLPN"], PUBLISHED["table4"]["CNN"]
    quoted = {"lbfgs": (0.685, 0.616), "pgd": (0.752, 0.655), "clean": (0.99, 0.986), "fgsm-transfer": (0.957, 0.917)}
    quoted |= {"lbfgs-transfer": (0.818, 0.779), "glass_blur": (0.788, 0.752), "contrast": (0.853, 0.845)}
    assert {name: (learned[name], plain[name]) for name in quoted} == quoted
    for table, rows in PUBLISHED.items():
        assert list(rows) == [row.name for row in TABLES[table]]
        assert all(list(row) == list(COLUMNS) for row in rows.values())
    assert set(COLUMNS) == set(CONDITIONS)


def test_accuracy_takes_the_state_the_draws_and_the_mean_of_severities(record):
    plain, noisy = runs_of(record, "MLP, ReLU")[1], runs_of(record, "MLPN, ReLU")[1]
    assert accuracy(plain, "clean") == 902 / 1000
    assert accuracy(noisy, "clean") == 931 / 1000
    assert accuracy(noisy, "clean", state="off") == 932 / 1000
    assert accuracy(noisy, "pgd") == (932 - 300 - 1 - 20) / 1000
    assert accuracy(noisy, "pgd", draws=1) == (932 - 300 - 1 - 1) / 1000
    assert accuracy(noisy, "pgd", state="off", draws=0) == (932 - 300) / 1000
    assert accuracy(noisy, "contrast") == pytest.approx((932 - 1 - 30) / 1000)
    assert str(spread(record, "MLP, ReLU", "clean")) == "0.902 ± 0.002"
    del noisy["figures"]["contrast/one/0/3"]
    with pytest.raises(RunError, match="MLPN, ReLU, seed 1: no accuracy for contrast, one, EOT-0 is recorded"):
        accuracy(noisy, "contrast")
    with pytest.raises(RunError, match="no run of 'CNN'"):
        runs_of(record, "CNN")


def test_tables_stand_beside_the_papers(record):
    head, *rows = main_table(record)
    assert head[1:] == list(COLUMNS.values())
    assert rows[0][:3] == ["MLP, ReLU", "0.902 ± 0.002 (0.948)", "0.602 ± 0.002 (0.149)"]
    assert rows[4][3] == "0.611 ± 0.002 (0.420)"
    states = states_table(record)
    assert len(states) == 1 + 4 * (1 + 2 + 2)
    assert states[1][:5] == ["MLP+, ReLU", "noise off", "without noise", "0.862 ± 0.002", "0.562 ± 0.002"]
    assert states[2][:5] == ["MLP+, ReLU", "one draw", "EOT-1", "0.861 ± 0.002", "0.560 ± 0.002"]
    assert states[5][:5] == ["MLP+, ReLU", "vote", "EOT-20", "0.860 ± 0.002", "0.540 ± 0.002"]
    assert findings_table(record)[1:4] == [["MLP, ReLU", "–"], ["MLP, Sigmoid", "–"], ["MLP+, ReLU", "1 of 3"]]
    lines = markdown(main_table(record)).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_a_record_is_read_as_it_was_written(record, tmp_path):
    path = tmp_path / "table3-paper.json"
    write_record(record, path)
    assert read_record(path) == record
    assert json.loads(path.read_text())["runs"] == record["runs"]
    whole = path.read_text()
    for damage, says in ((whole[:-20], "is damaged"), ("[]", "is no record"), ('{"format": "x"}', "is no record")):
        path.write_text(damage)
        with pytest.raises(RunError, match=says):
            read_record(path)
    with pytest.raises(RunError, match="run `noiseprop reproduce` first"):
        read_record(tmp_path / "none.json")


def test_welch_and_holm():
    # means 0.91 and 0.82, variances 1e-4 and 4e-4, 3 runs each: t = 0.09 / sqrt(5e-4 / 3), by Welch 50/17 degrees
    by_hand = 2 * student_t.sf(0.09 / (5e-4 / 3) ** 0.5, 50 / 17)
    assert welch([0.9, 0.91, 0.92], [0.8, 0.82, 0.84]) == pytest.approx(by_hand, rel=1e-9)
    assert welch([0.5], [0.6]) is None
    assert welch([0.5, 0.5], [0.5, 0.5]) == 1.0
    assert welch([0.5, 0.5], [0.6, 0.6]) == 0.0
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_verdicts_follow_the_numbers(record):
    by_name = {claim.sentence: claim for claim in CLAIMS["table3"]}
    clean = compare(record, by_name["Learned noise raises accuracy on clean images"])
    assert [(c.first, round(c.gain, 3), c.verdict) for c in clean] == [
        ("MLPN, ReLU", 0.029, 1),
        ("MLPN, Sigmoid", 0.029, 1),
    ]
    assert clean[0].printed == pytest.approx(0.921 - 0.948)
    assert [c.verdict for c in compare(record, by_name["Fixed noise raises accuracy under white-box attacks"])] == [
        -1
    ] * 6
    sigmoid = compare(record, by_name["Sigmoid does better than ReLU"])
    assert len(sigmoid) == 30
    assert all(c.gain == 0 and c.p_value == 1.0 and c.verdict == 0 for c in sigmoid)
    faster = compare(record, by_name["Learned noise trains faster"])
    assert [(c.ours[0].mean, c.ours[1].mean) for c in faster] == [(3.0, 3.0), (2.0, 2.0)] * 2
    one = copy.deepcopy(record)
    one["runs"] = [run for run in one["runs"] if run["seed"] == 0]
    assert all(c.p_value is None and c.verdict == 0 for c in compare(one, by_name["Sigmoid does better than ReLU"]))


def test_epochs_are_fewer_for_the_better_and_one_more_where_never_reached(record):
    for run in record["runs"]:
        if run["row"] == "MLP, ReLU":
            run["course"]["validation_loss"] = [0.9, 0.9, 0.9]
        if run["row"] == "MLPN, ReLU":
            run["course"]["validation_loss"] = [0.1, 0.1, 0.1]
    claim = Claim("faster", (("MLPN, ReLU", "MLP, ReLU"),), ("epochs to the loss",))
    (found,) = compare(record, claim)
    assert (found.ours[0].mean, found.ours[1].mean, found.gain, found.verdict) == (1.0, 4.0, 3.0, 1)


def test_the_page_says_what_the_numbers_say(record):
    text = page([record])
    assert "| Learned noise raises accuracy on clean images | **holds** (2 of 2) |" in text
    assert "| Fixed noise raises accuracy under white-box attacks | **no** (0 of 6, 6 the other way) |" in text
    assert "MLPN, ReLU: from the first epoch to the last, fc1 falls from 1.000 to 0.250." in text
    assert "| MLPN, ReLU against MLP, ReLU | +0.029; p < 0.001 (-0.027) |" in text
    assert (
        "MLPN, ReLU: 0.632 ± 0.002 with its noise off, 0.611 ± 0.002 with it; noise at inference takes 0.021." in text
    )
    worse = copy.deepcopy(record)
    for run in worse["runs"]:
        if run["row"].startswith("MLPN"):
            run["figures"] = figures(True, 700 + run["seed"])
            run["course"]["sigma"]["fc1"]["mean"] = [1.0, 1.5, 2.0]
    text = page([worse])
    assert "| Learned noise raises accuracy on clean images | **no** (0 of 2, 2 the other way) |" in text
    assert "fc1 grows from 1.000 to 2.000" in text
    both = page([dict(worse, protocol="released-code"), record])
    assert "| Table 3: MLPs on MNIST | paper | released-code |" in both
    assert both.index("protocol `paper`") < both.index("protocol `released-code`")
    one = dict(record, runs=[run for run in record["runs"] if run["seed"] == 0], seeds=[0])
    assert "With one seed nothing can be tested. 2 of 2 differences have the claimed sign." in page([one])


def test_figure_3_shows_the_means_and_repeats_to_the_byte(record, tmp_path):
    figure = figure_3(record)
    assert [axes.get_title() for axes in figure.axes] == ["training loss", "validation loss", "test accuracy"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert list(lines) == ["MLP, ReLU", "MLP+, ReLU", "MLPN, ReLU"]
    assert list(lines["MLPN, ReLU"]) == pytest.approx([0.5, 0.31, 0.1])
    paths = draw_figure_3(record, tmp_path / "one")
    again = draw_figure_3(record, tmp_path / "two")
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(paths, again, strict=True)] == [True, True]
    assert "validation loss" in paths[0].read_text()
    assert not re.search(r"<dc:date>", paths[0].read_text())
    with Image.open(paths[1]) as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(100_000)) > 100


def test_runs_that_stopped_early_are_drawn_as_far_as_they_went(record):
    shuffled = random.Random(0)
    for run in record["runs"]:
        length = shuffled.choice([1, 2, 3])
        for name in ("train_loss", "validation_loss", "test_accuracy"):
            run["course"][name] = run["course"][name][:length]
    longest = max(len(run["course"]["train_loss"]) for run in runs_of(record, "MLPN, ReLU"))
    line = figure_3(record).axes[0].lines[2]
    assert len(line.get_ydata()) == longest
