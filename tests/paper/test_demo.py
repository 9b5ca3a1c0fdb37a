from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from noiseprop.data import load, split
from noiseprop.files.records import read_record, write_record
from noiseprop.noise.sampling import sampling
from noiseprop.paper.demo import MODELS, DemoRecord, DemoSettings, is_demo, run_demo
from noiseprop.paper.demo_report import COLOURS, describe_demo, digest_demo, draw_demo, format_caption, tabulate_demo
from noiseprop.runs.trained_model import train_run
from noiseprop.training import TABLE_1

SMALL = DemoSettings(epochs=1, seeds=(0, 1), pgd_steps=3, eot_draws=4, curve_eps=(0.0, 0.1, 0.3))


@pytest.fixture(scope="module")
def record():
    return run_demo(SMALL)


def test_defaults_are_tables_1_and_2():
    chosen = DemoSettings()
    assert (chosen.epochs, len(chosen.seeds), chosen.eot_draws) == (30, 3, 20)
    assert (chosen.fgsm_eps, chosen.pgd_eps, chosen.pgd_steps, chosen.pgd_eps / 5) == (0.1, 25 / 255, 10, 5 / 255)


def test_it_repeats_to_the_last_figure(record):
    again = run_demo(SMALL)
    assert again.models == record.models
    assert msgspec.structs.replace(again, seconds=record.seconds) == record


def test_the_record_survives_its_file(record, tmp_path):
    write_record(tmp_path / "demo.json", record)
    assert read_record(tmp_path / "demo.json", DemoRecord) == record


def test_figures_of_the_plain_network_are_those_of_an_attack_written_out(record):
    net, _ = train_run("MLP", load("mnist-5k"), replace(TABLE_1["mnist-5k"], epochs=1), None, seed=1)
    test = split(load("mnist-5k")).test
    x, y = test.images.float() / 255, test.labels

    def accuracy(images):
        return int((net(images).argmax(1) == y).sum()) / len(y)

    def sign(images):
        images = images.detach().requires_grad_()
        return torch.autograd.grad(cross_entropy(net(images), y), images)[0].sign()

    found = record.models["MLP"][1]
    assert found.seed == 1
    assert found.on.clean == accuracy(x) == found.curve[0]
    assert found.on.fgsm == pytest.approx(accuracy((x + 0.1 * sign(x)).clamp(0, 1)), abs=2 / 714)
    for eps, curve in ((25 / 255, found.on.pgd), (0.3, found.curve[2])):
        moved = x
        for _ in range(3):
            moved = torch.clamp(moved + eps / 5 * sign(moved), x - eps, x + eps).clamp(0, 1)
        assert curve == pytest.approx(accuracy(moved), abs=2 / 714)


def test_noisy_networks_are_judged_with_their_noise_and_without(record):
    net, epochs = train_run("MLPN", load("mnist-5k"), replace(TABLE_1["mnist-5k"], epochs=1), None, seed=0)
    test = split(load("mnist-5k")).test
    x, y = test.images.float() / 255, test.labels
    found, fixed = record.models["MLPN"][0], record.models["MLP+"][0]
    assert found.off is not None
    with torch.no_grad(), sampling(net, "off"):
        assert found.off.clean == int((net(x).argmax(1) == y).sum()) / len(y)
    with torch.no_grad(), sampling(net, draws=200):
        expected = float((net(x).argmax(-1) == y).double().mean())
    assert found.on.clean == pytest.approx(expected, abs=0.02)
    assert abs(found.on.clean - found.off.clean) > 0.05  # noise of sigma 1 matters after one epoch
    assert None not in msgspec.structs.astuple(found.on)
    assert found.sigma == {name: (epochs[0].sigma[f"{name}.noise"].mean,) for name in ("fc1", "fc2", "fc3")}
    assert found.validation == (epochs[0].validation_accuracy,)
    assert fixed.sigma == {"fc1": (1.0,), "fc2": (1.0,), "fc3": (1.0,)}
    assert record.models["MLP"][0].off is None


def test_progress_names_every_step():
    told = []
    run_demo(msgspec.structs.replace(SMALL, seeds=(0,), curve_eps=()), progress=lambda *now: told.append(now))
    assert [name for _, _, name in told] == [
        *(f"{what} {model}, seed 0" for model in MODELS for what in ("training", "attacking")),
        "done",
    ]
    assert [(done, total) for done, total, _ in told] == [(n, 6) for n in range(7)]


def test_the_table_is_mean_and_sample_deviation_in_per_cent(record):
    heading, *table = tabulate_demo(record)
    assert [row[0] for row in table] == ["MLP", "MLP+", "MLP+, off", "MLPN", "MLPN, off"]
    assert heading == ["% right", "clean", "FGSM", "FGSM EOT-4", "PGD", "PGD EOT-4"]
    assert all(len(row) == 6 for row in table)
    for row, model, state in ((0, "MLP", "on"), (3, "MLPN", "on"), (4, "MLPN", "off")):
        a, b = (100 * getattr(run, state).fgsm for run in record.models[model])
        assert table[row][2] == f"{(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f}"
    assert [bool(cell) for cell in table[0]] == [True, True, True, False, True, False]
    assert all(table[3])


def test_the_notes_say_what_was_done(record):
    said = " ".join(describe_demo(record))
    for part in (
        "714 test digits",
        "2 training seeds",
        "3,572 digits for training, 1 epochs",
        "eps 0.1",
        "eps 25/255, 3 steps of 5/255",
        "one draw of noise per image",
        "EOT-4",
    ):
        assert part in said
    ends = [run.sigma["fc2"][-1] for run in record.models["MLPN"]]
    assert f"{np.mean(ends):.3f} ± {np.std(ends, ddof=1):.3f} in fc2" in said


def test_the_caption_tells_the_step_of_the_curve(record):
    assert format_caption(record) == (
        "Lines: mean of 2 training seeds; bands: ± 1 standard deviation over them. 714 test digits of mnist-5k. "
        "At every eps PGD's steps have size eps/5."
    )


def test_only_a_demo_s_record_is_one(record, tmp_path):
    path = tmp_path / "demo.json"
    assert not is_demo(path)
    for text in ("{", "[]", "{}", '{"format": "noiseprop reproduction, version 1"}'):
        path.write_text(text)
        assert not is_demo(path)
    write_record(path, record)
    assert is_demo(path)


def test_the_picture_shows_its_record(record, tmp_path):
    draw_demo(record, tmp_path / "demo.png")
    draw_demo(record, tmp_path / "again.png")
    with Image.open(tmp_path / "demo.png") as picture, Image.open(tmp_path / "again.png") as again:
        assert picture.text["Source"] == digest_demo(record)
        pixels = np.asarray(picture.convert("RGB"))
        assert np.array_equal(pixels, np.asarray(again.convert("RGB")))
    assert pixels.shape == (630, 1500, 3)
    for colour in COLOURS.values():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(-1).sum() > 200, colour
    first, *others = record.models["MLP"]
    first = msgspec.structs.replace(first, curve=(first.curve[0], first.curve[1] - 0.2, *first.curve[2:]))
    moved = msgspec.structs.replace(record, models=record.models | {"MLP": (first, *others)})
    draw_demo(moved, tmp_path / "moved.png")
    with Image.open(tmp_path / "moved.png") as other:
        assert other.text["Source"] != digest_demo(record)
        assert not np.array_equal(pixels, np.asarray(other.convert("RGB")))
