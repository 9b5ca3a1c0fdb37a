"""Views of the networks in a report: accuracy against eps, example images, saliency, and sigma."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from noiseprop.corruptions import corrupt, corruption_seed
from noiseprop.data import Dataset
from noiseprop.errors import NoisepropError
from noiseprop.evaluation.attack_suite import bind_attack, craft_images
from noiseprop.evaluation.evaluate import attack_images
from noiseprop.evaluation.scoring import (
    derive_noise_key,
    evaluation_mode,
    has_inference_noise,
    model_device,
    sample_logits,
)
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS, Settings, choose_settings
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.stream import reset_noise
from noiseprop.report.eps_curve import CURVE, Curve, check_curve_path, measure_eps_curve
from noiseprop.report.run_groups import Group, Run
from noiseprop.runs.trained_model import load_run, load_run_data
from noiseprop.saliency import smoothgrad

SEVERITY = 3  # of the example images' corruptions
MOST_EXAMPLES, EXAMPLES_IN_ALL = 5, 24  # per network and per report; pictures are most of the bytes of a report
_SEARCHED = 500  # images that are searched for examples of different classes

Progress = Callable[[int, int, str], None]
SurrogateOf = Callable[[Run, Dataset], nn.Module | None]


@dataclass(frozen=True)
class Sigma:
    """|sigma| of one layer in the shape of sigma: (neurons,), (C, H, W), ..."""

    layer: str
    values: Tensor


@dataclass(frozen=True)
class ExampleVersion:
    """Version of an example image, and the network's prediction for it.

    Attributes:
        name: "clean", one of the attacks or of the corruptions.
        image: (C, H, W) in [0, 1].
        label: class that most draws predict.
        share: share of the draws that predict it; None for a network without noise.
        right: whether it is the true class.
    """

    name: str
    image: Tensor
    label: str
    share: float | None
    right: bool


@dataclass(frozen=True)
class Example:
    """Test image in all its versions, and the saliency map (H, W) of its class."""

    label: str
    versions: tuple[ExampleVersion, ...]
    saliency: Tensor


@dataclass(frozen=True)
class NetworkView:
    """View of one run; missing parts are None or empty, with a sentence about the reason."""

    curve: Curve | None = None
    sigmas: tuple[Sigma, ...] = ()
    examples: tuple[Example, ...] = ()
    draws: int = 1
    troubles: tuple[str, ...] = ()


def view_networks(
    groups: Sequence[Group],
    *,
    data_dir: Path | None,
    images: int | None = None,
    surrogate_of: SurrogateOf | None = None,
    trusted: Collection[str] = (),
    own_data: str | None = None,
    progress: Progress | None = None,
) -> dict[Path, NetworkView]:
    """Return the views of all runs; examples and sigma only for the first run of each group.

    Args:
        groups: groups of runs.
        data_dir: folder of the official files.
        images: number of test images that are attacked at each eps; 0 omits the curves; by default 200 small grey
            images or 50 others.
        surrogate_of: returns the network for transfer attacks on a run, or None.
        trusted: user-defined networks, "package.module:function", whose code may be run.
        own_data: path of user-defined data, if it has changed since the training.
        progress: called with the finished steps, their total, and the name of the next one.
    """
    runs = [(group, run) for group in groups for run in group.runs]
    each = len(ATTACKS) + len(TRANSFERS) + 3
    found: dict[Path, NetworkView] = {}
    data: dict[str, Dataset] = {}
    for number, (group, run) in enumerate(runs):
        step = 0

        def report_step(what: str, number: int = number, run: Run = run) -> None:
            nonlocal step
            if progress:
                progress(number * each + min(step, each - 1), len(runs) * each, f"{run.path.name}: {what}")
            step += 1

        first = run is group.runs[0]
        count = min(MOST_EXAMPLES, max(1, EXAMPLES_IN_ALL // len(groups))) if first else 0
        test_images = partial(_load_test_images, run, data, data_dir, own_data)
        found[run.path] = _view_network(run, trusted, test_images, images, count, surrogate_of, report_step)
    if progress:
        progress(len(runs) * each, len(runs) * each, "done")
    return found


def _view_network(
    run: Run,
    trusted: Collection[str],
    test_images: Callable[[], Dataset],
    images: int | None,
    count: int,
    surrogate_of: SurrogateOf | None,
    report_step: Callable[[str], None],
) -> NetworkView:
    if run.settings is None:
        return NetworkView()
    report_step("network")
    sigmas: tuple[Sigma, ...] = ()
    try:
        model, _ = load_run(run.path, trusted)
        if count:
            sigmas = tuple(
                Sigma(path.removesuffix("noise").removesuffix("."), layer.sigma.detach().abs().cpu())
                for path, layer in noise_layers(model).items()
            )
        report_step("images")
        test = test_images()
        shape = tuple(test.images.shape[1:])
        known = run.evaluation.settings if run.evaluation else choose_settings(test.name, shape, own=bool(test.path))
        settings = _bound_settings(known)
        curve = None
        if images != 0:
            grey = test.images[0].numel() <= 1024
            x, y = attack_images(test, images or (200 if grey else 50), model_device(model))
            surrogate = surrogate_of(run, test) if surrogate_of else None
            kept = check_curve_path(run.path / CURVE)
            curve = measure_eps_curve(
                model, x, y, settings=settings, surrogate=surrogate, kept=kept, report_step=report_step
            )
        report_step("examples")
        return NetworkView(curve, sigmas, _make_examples(model, test, settings, count), settings.vote_draws)
    except NoisepropError as error:
        return NetworkView(sigmas=sigmas, troubles=(str(error),))


def _bound_settings(settings: Settings) -> Settings:
    """Return settings that come from a file with bounded steps, draws and rows."""
    return replace(
        settings,
        pgd_steps=min(settings.pgd_steps, 200),
        lbfgs_steps=min(settings.lbfgs_steps, 200),
        attack_draws=(min(max(settings.attack_draws), 100),),
        vote_draws=min(settings.vote_draws, 100),
        batch_size=min(settings.batch_size, 4096),
    )


def _load_test_images(run: Run, data: dict[str, Dataset], data_dir: Path | None, own_data: str | None) -> Dataset:
    """Return the test part of a run's data, read once for all runs that share it."""
    assert run.settings is not None
    key = repr(run.settings.data)
    if key not in data:
        own = own_data if run.settings.data.path else None
        data[key] = load_run_data(run.path, run.settings, data_dir, own).test
    return data[key]


def _make_examples(model: nn.Module, test: Dataset, settings: Settings, count: int) -> tuple[Example, ...]:
    """Return the first test images of different classes, attacked and corrupted, with saliency maps."""
    if not count:
        return ()
    x, y = attack_images(test, _SEARCHED, model_device(model))
    rows = _first_of_classes(y, count)
    x, y = x[rows], y[rows]
    with evaluation_mode(model):
        versions = [("clean", x), *_attack_examples(model, x, y, settings), *_corrupt_examples(x, test.name, settings)]
        predicted = [_predict_labels(model, image, y, settings, name) for name, image in versions]
        maps = smoothgrad(model, x, y).cpu()
    return tuple(
        Example(
            test.classes[int(y[i])],
            tuple(
                ExampleVersion(
                    name, image[i].cpu(), test.classes[label[i]], share[i] if share else None, label[i] == int(y[i])
                )
                for (name, image), (label, share) in zip(versions, predicted, strict=True)
            ),
            maps[i],
        )
        for i in range(len(y))
    )


def _first_of_classes(y: Tensor, count: int) -> list[int]:
    """Return the positions of the first images of the first `count` different classes."""
    first: dict[int, int] = {}
    for place, label in enumerate(y.tolist()):
        first.setdefault(label, place)
    return list(first.values())[:count]


def _attack_examples(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> list[tuple[str, Tensor]]:
    draws = max(settings.attack_draws) if has_inference_noise(model) else 1
    found: list[tuple[str, Tensor]] = []
    for name in ATTACKS:
        reset_noise(model, derive_noise_key(settings.seed, "example", name, "attack"))
        found.append(
            (name, craft_images(bind_attack(name, settings), model, x, y, draws=draws, rows=settings.batch_size))
        )
    return found


def _corrupt_examples(x: Tensor, name: str, settings: Settings) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for kind in CORRUPTIONS:
        generator = torch.Generator().manual_seed(corruption_seed(name, kind, SEVERITY))
        params = settings.corruption_params
        found.append((kind, corrupt(x, kind, severity=SEVERITY, params=params, generator=generator)))
    return found


@torch.no_grad()
def _predict_labels(
    model: nn.Module, x: Tensor, y: Tensor, settings: Settings, name: str
) -> tuple[list[int], list[float] | None]:
    """Return the class that most draws predict for each image with their share; without noise, the class alone."""
    if not has_inference_noise(model):
        return model(x).argmax(-1).tolist(), None
    reset_noise(model, derive_noise_key(settings.seed, "example", name, "score"))
    seen = sample_logits(model, x, y, settings.vote_draws).argmax(-1)  # (draws, n)
    label = seen.mode(0).values
    return label.tolist(), (seen == label).double().mean(0).tolist()
