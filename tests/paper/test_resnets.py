"""Tables 5 and 6 on small networks and few images."""

import copy
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm
from tests.faults.processes import LONG_ENOUGH
from tests.paper.documents import to_document, to_table

from noiseprop.cli import main
from noiseprop.errors import RunError
from noiseprop.evaluation import settings as evaluation_settings
from noiseprop.evaluation.serialization import read_evaluation
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS, known_settings
from noiseprop.evaluation.statistics import holm, welch, wilson
from noiseprop.paper import comparison, run_job, specs
from noiseprop.paper import page as page_module
from noiseprop.paper.comparison import CLAIMS, Claim, Comparison
from noiseprop.paper.explanations import StepCost
from noiseprop.paper.grid import DONE
from noiseprop.paper.job import TableSpec, load_parts
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import make_table_result, read_finished_runs, read_table
from noiseprop.paper.run_job import EVALUATION, is_finished, load_trained, read_finished
from noiseprop.paper.specs import TABLES, Row, choose_protocol, choose_settings, list_departures
from noiseprop.training.checkpoint import MODEL, STATE

pytestmark = [
    pytest.mark.usefixtures("small_resnets", "own_cache"),
    pytest.mark.filterwarnings("ignore:.*draws cannot share what comes before the noise"),
]

FEW: dict[str, Any] = {"attack_images": 16, "attack_draws": (1, 2), "vote_draws": 3, "trust_images": 6}
FEW |= {"lbfgs_steps": 2, "pgd_steps": 2, "batch_size": 32}


@pytest.fixture(scope="module", autouse=True)
def few():
    """Few images, draws and steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cifar10", "tiny-imagenet"):
            patch.setitem(evaluation_settings.SETTINGS, name, replace(known_settings(name), **FEW))
        fewer = {"eot_images": 8, "vote_images": 10, "trust_images": 4}
        patch.setattr(specs, "EVERYWHERE_LIMITS", {"table5": fewer, "table6": fewer})
        yield
    torch.set_num_threads(before)


def plan(root: Path, data_dir: Path, table: str = "table5", name: str = "paper", epochs: int = 2) -> TableSpec:
    data = specs.RESNETS[table]
    chosen = choose_protocol(name, table=table)
    return TableSpec(table, chosen, data, data_dir, epochs, "fp32", "fast", 20, root)


def quiet(done: int, total: int, what: str) -> None:
    pass


def page(documents: list[dict[str, Any]], costs: dict[str, StepCost] | None = None) -> str:
    return page_module.render_page([to_table(document) for document in documents], costs=costs)


def comparisons(document: dict[str, Any], claim: Claim) -> list[Comparison]:
    return comparison.compare_claim(to_table(document), claim)


def guessing(document: dict[str, Any]) -> list[str]:
    return comparison.find_guessing(to_table(document))


def failed_attacks(document: dict[str, Any]) -> dict[str, list[str]]:
    return comparison.find_failed_attacks(to_table(document))


def commands(document: dict[str, Any]) -> list[str]:
    return page_module.list_commands(to_table(document))


def how(document: dict[str, Any]) -> str:
    return page_module.describe_settings(to_table(document))


def judged_twice(half: dict[str, Any], single: dict[str, Any]) -> str:
    return page_module.render_precisions(to_table(half), to_table(single))


def runs_of(document: dict[str, Any], row: str) -> list[dict[str, Any]]:
    return [run for run in document["runs"] if run["row"] == row]


def over_seeds(c: Comparison) -> bool:
    return c.basis == "seeds"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def table5(root, image_dir) -> TableSpec:
    """ResNet18 and its variant with learned noise everywhere, trained and judged."""
    this = plan(root, image_dir)
    for row in (TABLES["table5"][i] for i in (0, 4)):
        run_job.run_job(this.make_job(row, 0), quiet)
    return this


def test_rows_and_printed_numbers_are_the_papers():
    assert [row.name for row in TABLES["table5"]] == list(PUBLISHED["table5"])
    assert [row.slug for row in TABLES["table6"]] == [
        *("resnet34", "resnet34-mlpplus", "resnet34-aplus", "resnet34-mlpn", "resnet34-an")
    ]
    noisy, plain = PUBLISHED["table5"]["ResNet18-AN"], PUBLISHED["table5"]["ResNet18"]
    # section 4.3: 0.393 vs 0.234, 0.489 vs 0.433, 0.203 vs 0.114, 0.562 vs 0.467, 0.613 vs 0.562, 0.175 vs 0.189
    quoted = {"fgsm": (0.393, 0.234), "lbfgs": (0.489, 0.433), "pgd": (0.203, 0.114), "clean": (0.905, 0.902)}
    quoted |= {"fgsm-transfer": (0.562, 0.467), "lbfgs-transfer": (0.613, 0.562), "glass_blur": (0.175, 0.189)}
    assert {name: (noisy[name], plain[name]) for name in quoted} == quoted
    noisy, plain = PUBLISHED["table6"]["ResNet34-AN"], PUBLISHED["table6"]["ResNet34"]
    # section 4.4: 0.121 vs 0.082, 0.402 vs 0.321, 0.055 vs 0.019, 0.412 vs 0.397, 0.352 vs 0.341, 0.448 vs 0.436
    quoted = {"fgsm": (0.121, 0.082), "lbfgs": (0.402, 0.321), "pgd": (0.055, 0.019), "clean": (0.448, 0.436)}
    quoted |= {"gaussian_noise": (0.412, 0.397), "glass_blur": (0.352, 0.341), "contrast": (0.346, 0.331)}
    assert {name: (noisy[name], plain[name]) for name in quoted} == quoted


def test_a_run_keeps_recipe_augmentation_and_all_figures(table5):
    job = table5.make_job(TABLES["table5"][4], 0)
    assert job.folder.parent.name == "paper-cifar10-fast-2"
    settings = json.loads((job.folder / "config.json").read_text())["settings"]
    assert settings["recipe"]["name"] == "fast"
    assert settings["recipe"]["augment"] is True
    assert settings["recipe"]["schedule"] == "one-cycle"
    evaluation = read_evaluation(job.folder / EVALUATION)
    assert evaluation.images == 20  # of 24
    assert evaluation.noisy
    sizes = {(m.condition, m.state, m.attack_draws): m.correct.size for m in evaluation.measurements}
    assert sizes["pgd", "one", 1] == 16
    assert sizes["pgd", "one", 2] == 8
    assert sizes["clean", "one", 0] == 20
    assert sizes["clean", "vote", 0] == 10
    assert {m.condition for m in evaluation.measurements} == set(COLUMNS)
    assert not list(job.folder.glob("*partial*"))


def test_surrogates_follow_the_recipe_and_have_a_single_linear(table5, root):
    (folder,) = [path for path in (root / "surrogates").iterdir() if path.is_dir()]
    assert folder.name.startswith("cifar10-ResNet18-surrogate-")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert (settings["recipe"]["name"], settings["recipe"]["epochs"]) == ("fast", 2)
    from safetensors.torch import load_file

    assert {name for name in load_file(folder / MODEL) if name.startswith("head")} == {
        "head.fc1.weight",
        "head.fc1.bias",
    }


def test_the_full_recipe_is_table_1s(root, image_dir):
    full = replace(plan(root, image_dir), recipe_name="table1", epochs=50)
    chosen = full.make_job(TABLES["table5"][0], 0).recipe
    assert (chosen.name, chosen.optimizer, chosen.lr, chosen.epochs, chosen.augment) == (
        "table1",
        "adam",
        1e-3,
        50,
        True,
    )
    assert full.make_job(TABLES["table5"][0], 0).folder.parent.name == "paper-cifar10"


@pytest.mark.parametrize(
    "moment",
    [
        "second epoch",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("first epoch", "surrogate", "pgd, EOT-2", "check frozen")),
    ],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(moment, table5, tmp_path):
    job = table5.make_job(TABLES["table5"][4], 0)
    this = replace(job, root=tmp_path)
    if moment != "surrogate":
        (tmp_path / "surrogates").symlink_to(table5.root / "surrogates")

    def stop(done: int, total: int, what: str) -> None:
        epoch = "first epoch" if done <= total // 2 else "second epoch"
        if what.startswith(("training, ", "training the surrogate")):
            part = "surrogate" if "surrogate" in what else epoch
            if part == moment and (part != "surrogate" or epoch == "second epoch"):
                raise KeyboardInterrupt
        if what.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job.run_job(this, stop)
    assert not is_finished(this)
    run_job.run_job(this, quiet)
    for name in (MODEL, STATE, EVALUATION):
        assert (this.folder / name).read_bytes() == (job.folder / name).read_bytes(), name


_TRAINED = """
import sys, time
from pathlib import Path
import pytest, torch
here, data, precision, root, *mark = sys.argv[1:]
sys.path.insert(0, here)
from conftest import shrink
shrink(pytest.MonkeyPatch())
torch.set_num_threads(2)
from noiseprop.paper.job import TableSpec
from noiseprop.paper.run_job import train_network
from noiseprop.paper.specs import TABLES, choose_protocol

def tell(done, total, what):
    if mark and done > total // 2:  # of the second epoch, whose weights have moved
        Path(mark[0]).touch()
        time.sleep(600)

chosen = choose_protocol("paper", table="table5")
plan = TableSpec("table5", chosen, "cifar10", Path(data), 2, precision, "fast", 20, Path(root))
train_network(plan.make_job(TABLES["table5"][4], 0), tell)
"""


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_a_killed_process_resumes_to_the_same_bits_in_another(precision, image_dir, tmp_path):
    """Augmented, by the one-cycle recipe, with learned noise in the convolutions: killed within its second epoch."""
    roots, mark = (tmp_path / "undisturbed", tmp_path / "killed"), tmp_path / "mark"
    undisturbed, this = (
        replace(plan(root, image_dir), precision=precision).make_job(TABLES["table5"][4], 0) for root in roots
    )
    command = [sys.executable, "-c", _TRAINED, Path(__file__).parent, image_dir, precision, this.root]
    process = subprocess.Popen([*command, mark], stderr=subprocess.PIPE)
    run_job.train_network(undisturbed, quiet)
    deadline = time.monotonic() + LONG_ENOUGH
    while not mark.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=LONG_ENOUGH)
    assert len((this.folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert (this.folder / MODEL).read_bytes() != (undisturbed.folder / MODEL).read_bytes()
    subprocess.run(command, check=True, timeout=LONG_ENOUGH)
    for name in (MODEL, STATE):  # weights, sigma, both optimizers' states and the noise's key
        assert (this.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name
    config = json.loads((this.folder / "config.json").read_text())
    assert (config["settings"]["recipe"]["precision"], config["made_with"]["threads"]) == (precision, 2)


def test_finished_steps_are_not_measured_again(table5, tmp_path, monkeypatch):
    job = table5.make_job(TABLES["table5"][0], 0)
    this = replace(job, root=tmp_path)
    (tmp_path / "surrogates").symlink_to(table5.root / "surrogates")

    def stop(done: int, total: int, what: str) -> None:
        if what == "contrast 5":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job.run_job(this, stop)
    monkeypatch.setattr(
        import_module("noiseprop.evaluation.evaluate"), "craft_images", None
    )  # no attack is made any more
    run_job.run_job(this, quiet)
    assert (this.folder / EVALUATION).read_bytes() == (job.folder / EVALUATION).read_bytes()


def test_only_noise_everywhere_sees_fewer_images_and_only_by_the_fast_recipe():
    paper = choose_protocol("paper", table="table5")
    for row in TABLES["table5"]:
        settings = choose_settings(paper, "cifar10", "table5", row, "fast")
        assert (settings.eot_images == 8) == (row.name in ("ResNet18-A+", "ResNet18-AN"))
        assert settings.attack_images == 16
        assert choose_settings(paper, "cifar10", "table5", row) == known_settings("cifar10")
        tiny = Row(row.model.replace("18", "34"))
        settings = choose_settings(paper, "tiny-imagenet", "table6", tiny, "fast")
        assert settings.trust_images == (4 if tiny.has_noise_everywhere else 6)
    cnn = choose_settings(paper, "mnist", "table4", Row("CNN-AN"))
    assert (cnn.eot_images > 10_000, cnn.vote_images) == (True, 2000)
    assert choose_settings(paper, "mnist", "table4", Row("CNN-MLPN")).vote_images > 10_000


def test_the_fast_recipes_votes_are_of_fewer_draws(monkeypatch):
    paper, row = choose_protocol("paper", table="table6"), Row("ResNet34-MLPN")
    monkeypatch.setitem(evaluation_settings.SETTINGS, "tiny-imagenet", evaluation_settings.Settings())
    assert choose_settings(paper, "tiny-imagenet", "table6", row, "fast").vote_draws == 8
    assert choose_settings(paper, "tiny-imagenet", "table6", row).vote_draws == 32


def record_of(table5: TableSpec) -> dict[str, Any]:
    return to_document(make_table_result(table5, read_finished_runs(table5)))


def test_the_record_tells_recipe_and_data(table5):
    record = record_of(table5)
    assert [run["row"] for run in record["runs"]] == ["ResNet18", "ResNet18-AN"]
    assert record["recipe"]["name"] == "fast"
    assert record["recipe"]["augment"] is True
    assert record["data"]["source"].startswith("CIFAR-10: 120 training and 24 test images from cifar-10-batches-bin, ")
    assert record["data"]["source"].endswith("which are not the official files")
    assert [record["data"][part] for part in ("train", "validation", "test")] == [96, 24, 24]
    told = how(record)
    assert "The fast recipe, not the paper's: Adam 0.001, one-cycle, 2 epochs in fp32 on 96 images, cropped" in told
    assert "20 of 24 test images, 16 of them attacked, in fp32." in told
    assert "averaged over 2 draws: ResNet18-AN on 8 images." in told
    assert "made on a ResNet18 without noise and with one Linear layer as its head, trained by the same recipe" in told
    (command,) = commands(record)
    asks = "--recipe fast --epochs 2 --precision fp32 --judge fp32 --test-images 20 --seeds 1"
    assert command == f"noiseprop reproduce table5 {asks} --models ResNet18 ResNet18-AN"
    assert f"`{command}`" in page([record])
    other = record | {"protocol": "released-code-without-sigma-decay", "recipe": record["recipe"] | {"name": "table1"}}
    other["departures"] = sorted(set(list_departures("table5")) - {"sigma-decay"})
    starts = "noiseprop reproduce table5 --protocol released-code --switch sigma-decay --recipe table1 "
    assert commands(other)[0].startswith(starts)


def test_the_page_reads_one_seed_over_images(table5):
    record = record_of(table5)
    text = page([record])
    assert "## Summary" in text
    assert "## Table 5: ResNet18 on CIFAR-10, protocol `paper`, fast recipe, 2 epochs" in text
    assert how(record) in text
    assert "Not run here: ResNet18-MLP+, ResNet18-A+, ResNet18-MLPN." in text
    assert "### Fixed noise lowers accuracy on clean images?\n\nThe rows behind this claim are not run here, or" in text
    assert "### Learned noise everywhere is best in all cases?" in text
    value = to_table(record).find_runs("ResNet18-AN")[0].accuracy("clean")
    assert f"| ResNet18-AN † | {value:.3f}" in text
    assert "(0.905)" in text
    assert "ResNet18-AN: 5 layers before the head" not in text  # the small network has four blocks
    assert "ResNet18-AN: 4 layers before the head" in text
    assert "on 6 images of ResNet18; 4 images of ResNet18-AN." in text
    assert page([]) == ""
    off, on = (runs_of(record, "ResNet18-AN")[0]["figures"][f"pgd/{state}/0"] for state in ("off/0", "one/2"))
    cells = [f"{right / n:.3f}\u00a0±\u00a0{(high - low) / 2:.3f} (n = {n})" for right, n, low, high in (off, on)]
    assert (off[1], on[1]) == (16, 8)
    assert f"| ResNet18-AN | {' | '.join(cells)} | {on[0] / 8 - off[0] / 16:+.3f}" in text


def test_a_network_of_several_seeds_is_tested_over_them(table5):
    record = copy.deepcopy(record_of(table5))
    record["runs"].append(dict(copy.deepcopy(record["runs"][1]), row="ResNet18-MLPN"))
    record["trust_images"]["ResNet18-MLPN"] = 6
    for run in list(record["runs"]):
        run["figures"][f"clean/{'one' if run['noisy'] else 'off'}/0/0"] = [800, 1000, 0.774, 0.823]
        if run["row"] != "ResNet18-AN":
            again = dict(copy.deepcopy(run), seed=1)
            right = 700 if run["row"] == "ResNet18-MLPN" else 804
            again["figures"][f"clean/{'one' if run['noisy'] else 'off'}/0/0"] = [
                right,
                1000,
                0.774 if right > 700 else 0.674,
                0.823,
            ]
            record["runs"].append(again)
    of_seeds, of_images = comparisons(record, CLAIMS["table5"][0])
    assert [over_seeds(c) for c in (of_seeds, of_images)] == [True, False]
    test = welch([0.8, 0.7], [0.8, 0.804])
    assert test is not None
    assert (of_seeds.p_value, of_seeds.gain) == pytest.approx((min(1.0, test.p_value * 2), test.difference.estimate))
    assert of_images.error == pytest.approx(math.hypot(0.0245, 0.0245))
    text = page([record])
    assert "Seeds: 1 of ResNet18-AN; 2 of ResNet18, ResNet18-MLPN. Deviations over so few seeds are rough" in text
    assert "tested over images or, where both networks have several seeds, over seeds)" in text
    once, twice = commands(record)
    assert once.endswith("--seeds 1 --models ResNet18-AN")
    assert twice.endswith("--seeds 2 --models ResNet18 ResNet18-MLPN")
    assert f"To redo it: `{once}`, then `{twice}`" in text
    for run in record["runs"]:  # seeds that do not scatter leave the images to tell
        run["figures"][f"clean/{'one' if run['noisy'] else 'off'}/0/0"] = (
            [801, 1000, 0.775, 0.824] if run["row"] == "ResNet18" else [800, 1000, 0.774, 0.823]
        )
    still = comparisons(record, CLAIMS["table5"][0])
    assert [(over_seeds(c), c.verdict) for c in still] == [(False, 0), (False, 0)]


def of_seeds(record: dict[str, Any], right: dict[str, dict[str, list[int]]]) -> None:
    """Give a record runs with so many of 1,000 images right, by row, condition and seed."""
    first = {row: next(run for run in record["runs"] if run["noisy"] == (row != "ResNet18")) for row in right}
    record["runs"] = []
    for row, conditions in right.items():
        for seed in range(3):
            run = dict(copy.deepcopy(first[row]), row=row, seed=seed)
            state = "one" if run["noisy"] else "off"
            for what, counts in conditions.items():
                draws = 2 if run["noisy"] and what in ATTACKS else 0
                interval = wilson(counts[seed], 1000)
                run["figures"][f"{what}/{state}/{draws}/0"] = [counts[seed], 1000, interval.low, interval.high]
            record["runs"].append(run)
    record["seeds"], record["trust_images"] = [0, 1, 2], dict.fromkeys(right, 6)


def test_seeds_that_are_alike_leave_the_images_to_tell(table5):
    record = copy.deepcopy(record_of(table5))
    clean = {"clean": [800, 810, 790]}
    transfers = {what: [500, 500, 500] for what in TRANSFERS}
    alike = {"fgsm": [230] * 3, "lbfgs": [300] * 3, "pgd": [23] * 3}
    other = {"fgsm": [230] * 3, "lbfgs": [301] * 3, "pgd": [24, 24, 27]}
    of_seeds(record, {"ResNet18": clean | transfers | alike, "ResNet18-MLPN": clean | transfers | other})
    fgsm, lbfgs, pgd = comparisons(record, CLAIMS["table5"][1])
    assert [over_seeds(c) for c in (fgsm, lbfgs, pgd)] == [False, False, True]
    assert fgsm.p_value == lbfgs.p_value == 1.0
    assert lbfgs.gain == pytest.approx(0.001)
    assert lbfgs.error == pytest.approx(0.0401, abs=1e-3)


def test_holms_correction_is_of_what_is_compared(table5):
    record = copy.deepcopy(record_of(table5))
    guess = {"clean": [100, 98, 103], **{what: [90, 95, 92] for what in (*ATTACKS, *TRANSFERS)}}
    plain = {"clean": [800, 810, 790], "fgsm": [30, 35, 33], "lbfgs": [60, 61, 65], "pgd": [1, 0, 2]}
    noisy = {"clean": [790, 800, 780], "fgsm": [50, 55, 53], "lbfgs": [400, 410, 405], "pgd": [2, 1, 4]}
    transfers = {what: [200, 210, 205] for what in TRANSFERS}
    of_seeds(record, {"ResNet18": plain | transfers, "ResNet18-MLPN": noisy | transfers, "ResNet18-AN": guess})
    assert guessing(record) == ["ResNet18-AN"]
    assert failed_attacks(record) == {"ResNet18-MLPN": ["lbfgs"]}
    found = comparisons(record, CLAIMS["table5"][1])
    assert [(c.first, c.condition, over_seeds(c)) for c in found] == [
        ("ResNet18-MLPN", "fgsm", True),
        ("ResNet18-MLPN", "pgd", True),
    ]
    tests = [welch([n / 1000 for n in noisy[what]], [n / 1000 for n in plain[what]]) for what in ("fgsm", "pgd")]
    assert [c.p_value for c in found] == pytest.approx(holm([test.p_value for test in tests if test]))


def test_a_row_has_learned_where_any_of_its_seeds_has(table5):
    record = copy.deepcopy(record_of(table5))
    of_seeds(record, {"ResNet18": {"clean": [100, 800, 790]}, "ResNet18-AN": {"clean": [100, 101, 99]}})
    assert guessing(record) == ["ResNet18-AN"]


def test_the_page_tells_course_cost_percentages_and_marks(table5):
    record = copy.deepcopy(record_of(table5))
    plain, noisy = record["runs"]
    for run, right in ((plain, 400), (noisy, 500)):
        state = "one/2" if run["noisy"] else "off/0"
        run["figures"][f"clean/{state.split('/')[0]}/0/0"] = [900, 1000, 0.88, 0.92]
        for attack in ATTACKS:
            run["figures"][f"{attack}/{state}/0"] = [right, 1000, right / 1000 - 0.03, right / 1000 + 0.03]
        for attack in TRANSFERS:
            run["figures"][f"{attack}/{state.split('/')[0]}/0/0"] = [600, 1000, 0.57, 0.63]
    for run, row in ((plain, "ResNet18"), (noisy, "ResNet18-AN")):
        for finding in run["findings"]:
            finding["outcome"] = "failed" if row == "ResNet18-AN" and finding["name"] == "convergence" else "passed"
    text = page([record], {"step-resnet18-bf16": StepCost(median=1.06, quartile_1=1.0, quartile_3=1.1, rounds=9)})
    assert "| ResNet18-AN † |" in text
    assert "| ResNet18 † |" not in text
    assert "| FGSM | +67.9% | +25.0% |" in text
    assert "| mean, white box | +53.0% | +25.0% |" in text  # the paper's own average
    assert "takes 1.06 times as long as one without" in text
    accuracies = " | ".join(f"{value:.3f}" for value in noisy["course"]["validation_accuracy"])
    assert "| validation accuracy after epoch | 1 | 2 |\n| --- | ---: | ---: |\n| ResNet18 | " in text
    assert f"| ResNet18-AN | {accuracies} |" in text
    assert "6 of these 8 differences are not as claimed." not in text
    assert "of 3, 3 as claimed; tested over images" in text


def test_judging_in_two_precisions_is_compared(table5):
    half, single = copy.deepcopy(record_of(table5)) | {"judged_in": "bf16"}, copy.deepcopy(record_of(table5))
    for record, right in ((half, 160), (single, 158)):
        plain, _ = record["runs"]
        plain["figures"]["clean/off/0/0"] = [right, 200, 0.7, 0.9]
        plain["figures"]["fgsm/off/0/0"] = [20, 200, 0.05, 0.2]
        record["runs"][1]["figures"]["clean/one/0/0"] = [20, 200, 0.07, 0.15]  # a guess, of which no attack tells
        for attack in ATTACKS:
            for what, of in ((attack, 20), (f"{attack}-transfer", 60)):
                if f"{what}/off/0/0" in plain["figures"]:
                    plain["figures"][f"{what}/off/0/0"] = [of, 200, 0.05, 0.4]
    text = judged_twice(half, single)
    assert "ResNet18 and ResNet18-AN, seed 0, on the first 20 test images" in text
    assert "More than 0.02 apart: none." in text
    assert "| ResNet18 | 0.800 / 0.790 | 0.100 / 0.100 |" in text
    assert f"`{commands(half)[0]}` and `{commands(single)[0]}`" in text
    assert "White-box attacks that their own transfer beats: in bf16: none; in fp32: none." in text
    half["runs"][0]["figures"]["lbfgs/off/0/0"] = [60, 200, 0.24, 0.37]
    half["runs"][0]["figures"]["lbfgs-transfer/off/0/0"] = [20, 200, 0.05, 0.2]
    assert "transfer beats: in bf16: L-BFGS on ResNet18; in fp32: none." in judged_twice(half, single)
    single["runs"][0]["figures"]["fgsm/off/0/0"] = [44, 200, 0.15, 0.3]
    text = judged_twice(half, single)
    assert "apart: FGSM on ResNet18; L-BFGS on ResNet18; L-BFGS, black box on ResNet18. Such figures are" in text


def test_noise_that_could_have_moved_and_did_not_is_told(table5):
    record = copy.deepcopy(record_of(table5))
    sigma = record["runs"][1]["course"]["sigma"]
    record["data"]["train"], record["recipe"]["batch_size"] = 1000, 10  # 200 steps
    for layer, sizes in sigma.items():
        away = 0.5 if layer.startswith("head.") else 0.03
        sizes |= {"mean": [1.0, 1.0], "min": [1.0, 1 - away], "max": [1.0, 1.01]}
    says = "no sigma of ResNet18-AN there moved by more than 0.030, where 200 steps of 0.001 allow 0.20."
    assert says in page([record])
    assert says not in page([record | {"departures": ["sigma-adam"]}])
    assert "nearly fixed" not in page([record | {"runs": record["runs"][:1]}])
    next(iter(sigma.values()))["max"][1] = 1.05
    assert "nearly fixed" not in page([record])


def test_what_has_not_learned_is_no_defence(table5):
    record = copy.deepcopy(record_of(table5))
    plain, noisy = record["runs"]
    plain["figures"] |= {"clean/off/0/0": [800, 1000, 0.774, 0.823], "pgd/off/0/0": [0, 1000, 0.0, 0.004]}
    noisy["figures"] |= {"clean/one/0/0": [110, 1000, 0.09, 0.132], "pgd/one/2/0": [100, 1000, 0.083, 0.12]}
    assert guessing(record) == ["ResNet18-AN"]
    clean, white = (comparisons(record, CLAIMS["table5"][number]) for number in (0, 1))
    assert (clean, white) == ([], [])
    text = page([record])
    says = "On clean images ResNet18-AN (0.110 ± 0.021) is not shown to do better than guessing (0.100). Accuracy"
    assert says in text
    assert "| Learned noise raises accuracy under white-box attacks | not run or not learned |" in text
    assert "### The paper's percentages\n\nNone: ResNet18-AN may be guessing, so a percentage" in text
    assert "| mean, white box |" not in text
    noisy["figures"]["clean/one/0/0"] = [121, 1000, 0.102, 0.143]
    assert guessing(record) == []
    noisy["figures"]["clean/one/0/0"] = [24, 250, 0.0653, 0.1389]  # .096: Wilson's interval is not around its middle
    assert guessing(record | {"data": record["data"] | {"classes": 16}}) == []
    assert guessing(record | {"data": record["data"] | {"classes": 15}}) == ["ResNet18-AN"]
    noisy["figures"]["clean/one/0/0"] = [121, 1000, 0.102, 0.143]
    for attack in TRANSFERS:
        noisy["figures"][f"{attack}/one/0/0"] = plain["figures"][f"{attack}/off/0/0"] = [900, 1000, 0.88, 0.92]
    assert len(comparisons(record, CLAIMS["table5"][1])) == 3


def test_an_attack_that_failed_is_no_defence(table5):
    record = copy.deepcopy(record_of(table5))
    plain, noisy = record["runs"]
    for run, white in ((plain, "off/0"), (noisy, "one/2")):
        run["figures"][f"clean/{white[:3]}/0/0"] = [800, 1000, 0.774, 0.823]
        for attack in ATTACKS:
            run["figures"][f"{attack}/{white}/0"] = [60, 1000, 0.047, 0.076]
        for attack in TRANSFERS:
            run["figures"][f"{attack}/{white[:3]}/0/0"] = [80, 1000, 0.065, 0.099]
    claim = CLAIMS["table5"][1]
    assert failed_attacks(record) == {}
    assert [c.condition for c in comparisons(record, claim)] == list(ATTACKS)
    noisy["figures"]["lbfgs/one/2/0"] = [50, 250, 0.155, 0.254]
    assert failed_attacks(record) == {"ResNet18-AN": ["lbfgs"]}
    assert [c.condition for c in comparisons(record, claim)] == ["fgsm", "pgd"]
    text = page([record])
    says = "White-box attacks that failed: L-BFGS on ResNet18-AN leaves 0.200 ± 0.050, by transfer 0.080 ± 0.017."
    assert says in text
    assert "| L-BFGS | +12.9% | – |" in text
    assert "| mean, white box | +53.0% | – |" in text
    assert (
        "2 of the 2 differences are between accuracies not shown to be better than guessing (0.100), where neither"
        in text
    )
    noisy["figures"]["lbfgs/one/2/0"] = [24, 250, 0.065, 0.139]  # .096, within the tolerance of .080
    assert failed_attacks(record) == {}


def test_what_the_paper_denies_is_counted_the_other_way(table5):
    record = copy.deepcopy(record_of(table5))
    record["runs"].append(dict(copy.deepcopy(record["runs"][1]), row="ResNet18-A+"))
    record["trust_images"]["ResNet18-A+"] = 6
    for run in record["runs"]:
        state = "one" if run["noisy"] else "off"
        for attack in ATTACKS:
            key = f"{attack}/{state}/{2 if run['noisy'] else 0}/0"
            run["figures"][key] = [0, 1000, 0.0, 0.004]
        run["figures"][f"clean/{state}/0/0"] = [800, 1000, 0.774, 0.823]
    claim = next(claim for claim in CLAIMS["table5"] if claim.denied)
    above = [c.printed for c in comparisons(record, claim)]
    printed = [PUBLISHED["table5"]["ResNet18-A+"][a] - PUBLISHED["table5"]["ResNet18"][a] for a in ATTACKS]
    assert above == pytest.approx(printed)
    count = sum(value > 0 for value in printed)
    assert 0 < count < 3
    text = page([record])
    part = text.split(f"### {claim.sentence}?")[1].split("###")[0]
    assert f"The paper denies this, although {count} of these 3 differences in its own table are above 0." in part
    assert "not as claimed" not in part


def test_verdicts_follow_the_numbers(table5):
    record = copy.deepcopy(record_of(table5))
    claim = CLAIMS["table5"][0]
    record["runs"].append(dict(copy.deepcopy(record["runs"][-1]), row="ResNet18-MLPN"))
    record["trust_images"]["ResNet18-MLPN"] = 6

    def clean(row: str, right: int) -> None:
        (run,) = runs_of(record, row)
        state = "one" if run["noisy"] else "off"
        interval = wilson(right, 1000)
        run["figures"][f"clean/{state}/0/0"] = [right, 1000, interval.low, interval.high]

    clean("ResNet18", 800)
    clean("ResNet18-MLPN", 900)
    clean("ResNet18-AN", 700)
    found = comparisons(record, claim)
    assert [(c.first, round(c.gain, 3), c.verdict) for c in found] == [
        ("ResNet18-MLPN", 0.1, 1),
        ("ResNet18-AN", -0.1, -1),
    ]
    text = page([record])
    assert "**Mixed** (of 2, 1 as claimed and 1 the other way; tested over images)." in text
    clean("ResNet18-AN", 805)
    assert [c.verdict for c in comparisons(record, claim)] == [1, 0]
    low, high = (wilson(right, 1000) for right in (800, 805))
    error = math.hypot(low.high - low.low, high.high - high.low) / 2
    assert comparisons(record, claim)[1].p_value == pytest.approx(2 * norm.sf(0.005 / error * 1.959964), rel=1e-4)
    clean("ResNet18-MLPN", 795)
    assert "### Learned noise raises accuracy on clean images?\n\n**Not shown** (of 2, none" in page([record])
    clean("ResNet18-AN", 950)
    clean("ResNet18-MLPN", 900)
    assert "### Learned noise raises accuracy on clean images?\n\n**Holds** (of 2, 2 as claimed;" in page([record])


def test_claims_name_rows_of_the_table():
    for table in ("table5", "table6"):
        names = {row.name for row in TABLES[table]}
        assert all(names.issuperset(pair) for claim in CLAIMS[table] for pair in claim.pairs)
    best = next(claim for claim in CLAIMS["table6"] if "everywhere is best" in claim.sentence)
    assert {second for _, second in best.pairs} == {row.name for row in TABLES["table6"]} - {"ResNet34-AN"}


def in_this_process(jobs, *, processes, show, start):
    for job in jobs:
        if not is_finished(job):
            run_job.run_job(job, lambda done, total, what: None)
        show(job.name, 1, 1, DONE)


def test_the_command_writes_after_each_run_and_prints_how(table5, image_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("noiseprop.paper.grid.run_all", in_this_process)
    written: list[int] = []
    original = run_job.run_job
    path = tmp_path / "table5-paper-fast-2.json"

    def counting(job, tell):
        written.append(len(read_table(path).runs) if path.exists() else 0)
        original(job, tell)

    monkeypatch.setattr(run_job, "run_job", counting)
    options = ["--recipe", "fast", "--epochs", "2", "--test-images", "20", "--seeds", "1", "--jobs", "1"]
    folders = ["--data-dir", str(image_dir), "--runs", str(table5.root), "--out", str(tmp_path)]
    assert main(["reproduce", "table5", *options, *folders, "--models", "ResNet18", "ResNet18-MLP+"]) == 0
    record = read_table(path)
    assert {run.row for run in record.runs} == {"ResNet18", "ResNet18-MLP+", "ResNet18-AN"}
    assert written == [2]  # what was finished before is in the file as soon as the first row is looked at
    said = capsys.readouterr().out
    assert "The fast recipe, not the paper's: Adam 0.001, one-cycle, 2 epochs" in said
    assert "which are not the official files" in said
    assert "20 of 24 test images, 16 of them attacked" in said
    assert str(path) in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["table5", "--models", "ResNet34"],
            "'ResNet34' is not a row of table5; choose one of ResNet18; ResNet18-MLP+",
        ),
        (["table5", "--data", "mnist-5k"], "--data mnist-5k is for Tables 3 and 4; omit it"),
        (["figure4", "--models", "ResNet34"], "all networks of Table 6 classify correctly; omit --models"),
        (["table6", "--test-images", "0"], "--test-images is 0; give 1 or more"),
        (
            ["table6", "--switch", "normalised-attacks"],
            "is not a departure of the released code; choose from gradient-sign",
        ),
        (["table5", "--data-dir", "/nowhere"], "/nowhere"),
        (["table5", "--device", "gpu"], "'gpu' is not a device that torch can use here; choose one of cpu"),
    ],
)
def test_bad_input_is_one_sentence(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_not_trained_is_told(table5):
    with pytest.raises(RunError, match=r"ResNet18-A\+, seed 0 is not trained yet; redo its table first"):
        load_trained(table5.make_job(TABLES["table5"][2], 0))


def test_a_network_that_was_trained_otherwise_is_not_taken_for_the_one_asked_for(table5, monkeypatch):
    job = table5.make_job(TABLES["table5"][4], 0)
    assert not load_trained(job).training
    with pytest.raises(RunError, match=r"other settings: recipe\.precision = 'fp32' there and 'bf16' now"):
        load_trained(replace(job, precision="bf16"))
    one = replace(table5, epochs=1).make_job(TABLES["table5"][4], 0)
    one.folder.parent.mkdir()
    one.folder.symlink_to(job.folder)  # a folder's name is no proof
    with pytest.raises(RunError, match="was planned for 2 epochs, got 1"):
        load_trained(one)
    other = replace(parts := load_parts(job), train=parts.train[1:])
    monkeypatch.setattr(run_job, "load_parts", lambda job: other)
    with pytest.raises(RunError, match="was trained on other data: the images or labels of this cifar10 are not"):
        load_trained(job)


def test_a_network_is_built_where_it_is_to_compute(table5, monkeypatch):
    asked = []
    monkeypatch.setattr(run_job, "choose_device", lambda name: asked.append(name) or torch.device("meta"))
    model = run_job.build_network(replace(table5, device="cuda:1").make_job(TABLES["table5"][4], 0))
    assert asked == ["cuda:1"]
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.slow
def test_judging_in_bf16_is_another_evaluation_of_the_same_network(table5, tmp_path):
    exact = table5.make_job(TABLES["table5"][4], 0)
    this = replace(exact, root=tmp_path, judged_in="bf16")
    shutil.copytree(exact.root, tmp_path, dirs_exist_ok=True)
    assert is_finished(exact)
    assert not is_finished(this)
    run_job.run_job(this, quiet)
    assert (this.folder / MODEL).read_bytes() == (exact.folder / MODEL).read_bytes()
    half, full = (read_evaluation(job.folder / EVALUATION) for job in (this, exact))
    assert half.about["judged_in"] == "bf16"
    assert "judged_in" not in full.about
    assert abs(half.accuracy("clean", state="off") - full.accuracy("clean", state="off")) <= 0.1
    record = to_document(make_table_result(replace(table5, judged_in="bf16"), [read_finished(this)]))
    assert "16 of them attacked, in bf16." in how(record)


@pytest.mark.slow
def test_table_6_takes_its_own_data_corruptions_and_classes(root, image_dir):
    this = plan(root, image_dir, "table6", epochs=1)
    job = this.make_job(TABLES["table6"][3], 0)
    run_job.run_job(job, quiet)
    evaluation = read_evaluation(job.folder / EVALUATION)
    assert evaluation.settings.corruption_params == "tiny-imagenet"
    assert evaluation.settings.fgsm_eps == 2 / 255
    assert {m.severity for m in evaluation.measurements if m.condition in CORRUPTIONS} == {1, 2, 3, 4, 5}
    settings = json.loads((job.folder / "config.json").read_text())["settings"]
    assert settings["model"]["classes"] == 3
    record = to_document(make_table_result(this, read_finished_runs(this)))
    assert "with 30 of 500 training images a class, which is not the official archive" in record["data"]["source"]
    assert load_trained(job).head.fc4.out_features == 3
    assert "Table 6: ResNet34 on Tiny-ImageNet" in page([record])
    assert comparison.chance_level(to_table(record)) == pytest.approx(1 / 3)  # of the classes that were found
