"""Every example runs, and shows what its text says."""

import contextlib
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


def falls(names: dict[str, Any], printed: str) -> None:
    first, last = names["history"][0], names["history"][-1]
    assert all(last[path] < first[path] < 1.01 for path in first)
    assert min(names["one"], names["vote"], names["silent"]) > 0.8


def is_learned(names: dict[str, Any], printed: str) -> None:
    assert "2.noise: sigma (8, 1, 1)" in printed
    assert "7.noise: sigma (10,)" in printed
    assert names["accuracy"] > 0.85
    assert "sigma / own std" in printed


def is_broken_by_more(names: dict[str, Any], printed: str) -> None:
    rows = re.findall(r"^(.{18})  (0\.\d+)  (0\.\d+)$", printed, re.MULTILINE)
    scores = {name.strip(): (float(plain), float(noisy)) for name, plain, noisy in rows}
    assert len(scores) == 6
    plain, noisy = (dict(zip(scores, column, strict=True)) for column in zip(*scores.values(), strict=True))
    assert plain["FGSM, one draw"] == plain["FGSM, EOT-20"]
    assert noisy["FGSM, EOT-20"] < noisy["FGSM, one draw"] + 0.01  # more draws make no attack weaker
    assert plain["PGD-10, one draw"] < plain["FGSM, one draw"] < plain["clean"]
    assert noisy["PGD-10, EOT-20"] < names["transferred"]


def is_compared(names: dict[str, Any], printed: str) -> None:
    assert "vote of 16" in printed
    assert re.search(r"clean: -0\.\d+ \[-0\.\d+, -0\.\d+\], p = ", printed)  # noise costs clean accuracy
    noisy, plain = (sum(names["scores"][noise]) for noise in (True, False))
    assert noisy > plain  # and buys some under FGSM


def stays(names: dict[str, Any], printed: str) -> None:
    mean, low, _, _ = zip(*(names["results"][name] for name in names["objectives"]), strict=True)
    plain, floor, power, entropy = range(4)
    assert mean[plain] < min(mean[floor], mean[power], mean[entropy])
    assert low[plain] < 0.8 <= low[floor] + 1e-6


def is_corrupted(names: dict[str, Any], printed: str) -> None:
    for curves in names["curves"].values():
        assert set(curves) == {"gaussian_noise", "impulse_noise", "glass_blur", "contrast"}
        assert all(curve[-1] < curve[0] for curve in curves.values())


def looks(names: dict[str, Any], printed: str) -> None:
    shares = [float(share) for share in re.findall(r"(0\.\d+) of the saliency", printed)]
    assert len(shares) == 2
    assert all(0.2 < share < 1 for share in shares)
    assert all(maps.shape == (8, 28, 28) and (maps >= 0).all() for maps in names["maps"].values())


def is_put_on(names: dict[str, Any], printed: str) -> None:
    fresh, elsewhere = names["published"], names["elsewhere"].state_dict()
    assert all(torch.equal(elsewhere[name], tensor) for name, tensor in fresh.items())  # the weights are as they were
    assert all((layer.sigma > 0.1).any() for layer in names["noise_layers"](names["elsewhere"]).values())
    assert names["silent"] > 0.85
    assert names["noisy"] > names["silent"] - 0.1


CHECKS = {
    "train_with_noise": falls,
    "noise_for_your_model": is_learned,
    "attack_a_noisy_network": is_broken_by_more,
    "evaluate_and_compare": is_compared,
    "prevent_sigma_collapse": stays,
    "corruptions": is_corrupted,
    "saliency": looks,
    "pretrained_weights_with_saved_noise": is_put_on,
}


def test_every_example_is_checked():
    assert set(EXAMPLES) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_runs_and_shows_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = runpy.run_path(str(EXAMPLES[name]))
    plt.close("all")
    CHECKS[name](names, printed.getvalue())
    for picture in re.findall(r'savefig\("(.*?)"', EXAMPLES[name].read_text()):
        assert (tmp_path / picture).stat().st_size > 5000
