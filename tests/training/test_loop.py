import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from noiseprop import SigmaAdam, add_noise, sampling, sigmas, weights
from noiseprop.data import batches, crop_and_flip, load, split
from noiseprop.errors import InputError, RunError
from noiseprop.models import cnn, mlp
from noiseprop.training import Recipe, SigmaStatistics, load_model, loss_and_accuracy, train
from noiseprop.training.metrics import compute_sigma_statistics

RECIPE = Recipe(epochs=3, batch_size=32, lr=1e-2, sigma_lr=1e-2)


def network(seed: int = 0, *, noisy: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp((36, 8, 3))
    if noisy:
        add_noise(net, where=net.sites["fc"], init=0.5, example=torch.zeros(1, 1, 6, 6), key=seed)
    return net


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("augment", [False, True])
def test_algorithm_1_written_out(thirds, augment):
    """The plain loop that a reader of the paper would write, with unfused Adam, gives the same network."""
    net = network()
    history = train(net, thirds, replace(RECIPE, epochs=2, augment=augment), seed=4)

    model = network()
    adam = torch.optim.Adam(weights(model), lr=1e-2, weight_decay=1e-4, foreach=False)
    sigma_adam = SigmaAdam(sigmas(model), lr=1e-2)
    for epoch in (1, 2):
        order = int(np.random.SeedSequence((4, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator().manual_seed(order)
        rows = torch.randperm(150, generator=generator)
        losses, hits = [], 0
        for chosen in rows.split(32):
            x, y = thirds.train.images[chosen].float() / 255, thirds.train.labels[chosen]
            x = crop_and_flip(x, padding=4, generator=generator) if augment else x
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
            adam.zero_grad()
            sigma_adam.zero_grad()
            loss.backward()
            adam.step()
            sigma_adam.step()
            losses.append(loss.item() * len(y))
            hits += int((logits.argmax(1) == y).sum())
        assert history[epoch - 1].train_loss == pytest.approx(sum(losses) / 150, rel=1e-4)
        assert history[epoch - 1].train_accuracy == hits / 150
        with torch.no_grad():
            logits = model(thirds.validation.images.float() / 255)
        expected = nn.functional.cross_entropy(logits, thirds.validation.labels).item()
        assert history[epoch - 1].validation_loss == pytest.approx(expected, rel=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_it_learns(thirds):
    net = network(noisy=False)
    history = train(net, thirds, replace(RECIPE, epochs=20))
    assert history[-1].validation_accuracy > 0.9 > history[0].validation_accuracy
    assert history[-1].validation_loss == loss_and_accuracy(net, thirds.validation)[0]
    assert [epoch.epoch for epoch in history] == list(range(1, 21))


def test_one_seed_gives_one_network_and_another_seed_another(thirds):
    first, again, other = network(), network(), network()
    train(first, thirds, RECIPE, seed=1)
    torch.rand(17)  # the global generator does not matter
    train(again, thirds, RECIPE, seed=1)
    train(other, thirds, RECIPE, seed=2)
    assert equal(bits(first), bits(again))
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_the_caller_s_random_state_stays(thirds):
    state = torch.get_rng_state()
    train(network(), thirds, replace(RECIPE, epochs=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_test_images_decide_nothing(thirds):
    poisoned = replace(thirds, test=replace(thirds.test, images=255 - thirds.test.images))
    nets = network(), network()
    for net, parts in zip(nets, (thirds, poisoned), strict=True):
        train(net, parts, RECIPE)
    assert equal(bits(nets[0]), bits(nets[1]))


def test_dropout_repeats_too(thirds):
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(), nn.Linear(8, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        train(net, thirds, RECIPE)
    assert equal(bits(nets[0]), bits(nets[1]))


def test_fixed_noise_stays_and_learned_noise_moves(thirds):
    for learn in (False, True):
        net = network(noisy=False)
        add_noise(net, where=("fc1",), init=0.5, learn=learn, example=torch.zeros(1, 1, 6, 6))
        history = train(net, thirds, RECIPE)
        statistics = history[-1].sigma["fc1.noise"]
        assert (statistics.std > 1e-3) == learn
        assert (statistics == SigmaStatistics(mean=0.5, std=0.0, min=0.5, max=0.5)) != learn


def test_sigma_statistics_are_of_absolute_values():
    net = network()
    net.fc2.noise.sigma.data = torch.tensor([-1.0, 2.0, 3.0])
    found = compute_sigma_statistics(net)["fc2.noise"]
    assert (found.mean, found.std, found.min, found.max) == (2.0, pytest.approx((2 / 3) ** 0.5), 1.0, 3.0)
    assert list(compute_sigma_statistics(net)) == ["fc1.noise", "fc2.noise"]


def test_l2_falls_on_weights_only(thirds):
    nets = network(), network()
    for net, decay in zip(nets, (0.0, 10.0), strict=True):
        train(net, thirds, replace(RECIPE, epochs=15, weight_decay=decay, lr=3e-2, sigma_lr=0.0))
    assert nets[1].fc1.weight.abs().mean() < 0.2 * nets[0].fc1.weight.abs().mean()
    assert (nets[1].fc1.noise.sigma == 0.5).all()


def test_the_schedule_is_applied_step_by_step(thirds):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            seen.append(self.scale.item())
            return x.new_tensor([[1.0, 0.0, 0.0]]) * self.scale.expand(len(x), 1)

    recipe = Recipe(epochs=1, batch_size=50, optimizer="sgd", lr=1.0, weight_decay=0.0, schedule="one-cycle")
    all_top = replace(thirds.train, labels=torch.full_like(thirds.train.labels, 1))
    train(Spy(), replace(thirds, train=all_top), recipe)
    seen = seen[2:]  # without the two trial passes
    assert seen[0] == 0.0
    gradient = [np.exp(s) / (np.exp(s) + 2) for s in seen[:3]]  # of the loss -log softmax of class 1
    rates = [1 / 25 + (1 - 1 / 25) * 0 / 0.6, None]
    assert seen[1] == pytest.approx(-rates[0] * gradient[0], rel=1e-5)
    fall = (1 - 0.6) / (2 - 0.6)
    second = 1e-3 + (1 - 1e-3) * (1 + np.cos(np.pi * fall)) / 2
    assert seen[2] == pytest.approx(seen[1] - second * gradient[1], rel=1e-5)
    assert seen[3] == pytest.approx(seen[2] - 1e-3 * gradient[2], rel=1e-4)


def test_bf16_follows_fp32_with_its_own_rounding(thirds):
    nets = network(noisy=False), network(noisy=False)
    histories = [
        train(net, thirds, replace(RECIPE, epochs=8, precision=precision))
        for net, precision in zip(nets, ("fp32", "bf16"), strict=True)
    ]
    for exact, rounded in zip(histories[0][:3], histories[1][:3], strict=True):  # later, small differences have grown
        assert rounded.train_loss == pytest.approx(exact.train_loss, rel=0.1)
        assert rounded.train_loss != exact.train_loss
    assert histories[1][-1].train_loss < 0.7 * histories[1][0].train_loss
    assert nets[1].fc1.weight.dtype == torch.float32


def test_convolutions_train_in_channels_last_and_come_back(thirds):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    layouts: set[bool] = set()
    net[1].register_forward_hook(lambda m, i, out: layouts.add(m.weight.is_contiguous()))
    train(net, thirds, replace(RECIPE, epochs=1))
    assert layouts == {False}
    assert net[1].weight.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_copied_into_channels_last_only_where_that_differs(thirds, monkeypatch, channels):
    def coloured(part):
        return replace(part, images=part.images.expand(-1, channels, -1, -1).contiguous())

    drawn, taken, layouts = [], [], set()

    def noting(*args, **kwargs):
        for x, y in batches(*args, **kwargs):
            drawn.append(x.data_ptr())
            yield x, y

    for module in ("loop", "metrics"):
        monkeypatch.setattr(f"noiseprop.training.{module}.batches", noting)
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(64, 3))

    @net.register_forward_pre_hook
    def note(_, inputs):
        taken.append(inputs[0].data_ptr())
        layouts.add(inputs[0].is_contiguous(memory_format=torch.channels_last))

    train(net, replace(thirds, train=coloured(thirds.train), validation=coloured(thirds.validation)), RECIPE)
    taken = taken[2:]  # without the two trial passes
    assert len(taken) == len(drawn) == 3 * (5 + 1)
    assert (taken == drawn) == (channels == 1)
    assert layouts == {True}


def test_progress_is_told(thirds):
    calls = []
    train(network(), thirds, RECIPE, progress=lambda *now: calls.append(now))
    assert [call[:2] for call in calls] == [(5, 15), (10, 15), (15, 15)]
    assert all(np.isfinite(call[2]) for call in calls)


def test_the_folder_holds_what_was_returned(thirds, tmp_path):
    net = network()
    history = train(net, thirds, RECIPE, tmp_path / "run", seed=3, settings={"trial": "MLPN"})
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "state.safetensors",
    ]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_accuracy"] for line in lines] == [epoch.validation_accuracy for epoch in history]
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["extra"], settings["seed"], settings["recipe"]["lr"]) == ({"trial": "MLPN"}, 3, 1e-2)
    assert settings["model"] == {"kind": "python", "name": "MLP"}
    assert settings["data"]["images"] == {"train": 150, "validation": 40, "test": 40}
    other = network(9)
    assert load_model(other, tmp_path / "run" / "model.safetensors") == 3
    assert equal(bits(other), bits(net))


class Stop(Exception):  # noqa: N818 - nothing is wrong
    """Raised in the middle of an epoch."""


def stopping_after(steps):
    def progress(step, total, loss):
        if step >= steps:
            raise Stop

    return progress


def same_run(a, b):
    states = load_file(a / "state.safetensors"), load_file(b / "state.safetensors")
    lines = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (a, b)]
    for line in lines[0] + lines[1]:
        del line["seconds"], line["sha256"]
    models = (a / "model.safetensors").read_bytes(), (b / "model.safetensors").read_bytes()
    return equal(*states) and lines[0] == lines[1] and models[0] == models[1]


@pytest.mark.parametrize("noisy", [False, True])
def test_a_stopped_run_resumes_to_the_same_bits(thirds, tmp_path, noisy):
    train(network(noisy=noisy), thirds, RECIPE, tmp_path / "whole")
    with pytest.raises(Stop):
        train(network(noisy=noisy), thirds, RECIPE, tmp_path / "parts", progress=stopping_after(10))
    assert not same_run(tmp_path / "whole", tmp_path / "parts")
    history = train(network(noisy=noisy), thirds, RECIPE, tmp_path / "parts", resume=True)
    assert same_run(tmp_path / "whole", tmp_path / "parts")
    assert [epoch.epoch for epoch in history] == [1, 2, 3]


def test_every_moment_of_a_kill_is_survived(thirds, tmp_path, monkeypatch):
    """Dies before or after each of the three files of epoch 2 is written."""
    train(network(), thirds, RECIPE, tmp_path / "whole")
    for number, name in enumerate(("append_epoch", "save_state", "save_model")):
        for late in (False, True):
            run = tmp_path / f"{number}{late}"
            original = getattr(sys.modules["noiseprop.training.loop"], name)
            count = iter(range(9))

            def dies(*args, original=original, late=late, count=count, **kwargs):
                second = next(count) == 1
                if second and not late:
                    raise Stop
                original(*args, **kwargs)
                if second:
                    raise Stop

            with monkeypatch.context() as patch:
                patch.setattr(f"noiseprop.training.loop.{name}", dies)
                with pytest.raises(Stop):
                    train(network(), thirds, RECIPE, run)
            with (run / "metrics.jsonl").open("a") as file:
                file.write('{"epoch": ')
            train(network(), thirds, RECIPE, run, resume=True)
            assert same_run(tmp_path / "whole", run), (name, late)


def test_resuming_a_finished_run_changes_nothing(thirds, tmp_path):
    train(network(), thirds, RECIPE, tmp_path / "run")
    before = (tmp_path / "run" / "state.safetensors").read_bytes()
    net = network(5)
    assert len(train(net, thirds, RECIPE, tmp_path / "run", resume=True)) == 3
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == before
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert equal(bits(net), saved)


def test_resume_starts_a_run_that_has_no_checkpoint(thirds, tmp_path):
    train(network(), thirds, RECIPE, tmp_path / "whole")
    with pytest.raises(Stop):
        train(network(), thirds, RECIPE, tmp_path / "parts", progress=stopping_after(1))
    assert not (tmp_path / "parts" / "state.safetensors").exists()
    train(network(), thirds, RECIPE, tmp_path / "parts", resume=True)
    train(network(), thirds, RECIPE, tmp_path / "new", resume=True)
    assert same_run(tmp_path / "whole", tmp_path / "parts")
    assert same_run(tmp_path / "whole", tmp_path / "new")


def test_an_existing_run_and_other_settings_are_refused(thirds, tmp_path):
    train(network(), thirds, RECIPE, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match="holds a run already"):
        train(network(), thirds, RECIPE, tmp_path / "run")
    with pytest.raises(RunError, match=r"other settings: seed = 0 there and 1 now;"):
        train(network(), thirds, replace(RECIPE, epochs=4), tmp_path / "run", seed=1, resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import made_up
from noiseprop.data import Split
from test_loop import RECIPE, network
from noiseprop.training import train

thirds = Split(made_up(150, 1), made_up(40, 2), made_up(40, 3), seed=7, ratio=(5, 1, 1))
killing = lambda step, *_: step >= 10 and os.kill(os.getpid(), signal.SIGKILL)
train(network(), thirds, RECIPE, Path(sys.argv[1]), progress=killing)
"""


def test_a_killed_process_resumes_to_the_same_bits(thirds, tmp_path):
    script = KILLED.format(tests=os.path.dirname(__file__), run="RUN").replace(
        "'RUN'", "__import__('pathlib').Path(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "killed"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 1
    train(network(), thirds, RECIPE, tmp_path / "killed", resume=True)
    train(network(), thirds, RECIPE, tmp_path / "whole")
    assert same_run(tmp_path / "whole", tmp_path / "killed")


class Fragile(nn.Module):
    """Gives NaN from its `good`-th batch on."""

    def __init__(self, good):
        super().__init__()
        self.net, self.good, self.seen = mlp((36, 3)), good, 0

    def forward(self, x):
        self.seen += 1
        return self.net(x) * (1.0 if self.seen <= self.good else float("nan"))


@pytest.mark.parametrize(("good", "name"), [(7, "loss"), (11, "validation loss")])
def test_nan_stops_and_keeps_the_last_good_epoch(thirds, tmp_path, good, name):
    """An epoch is 5 training batches and 1 of validation."""
    with pytest.raises(RunError, match=f"the {name} became nan in epoch 2"):
        train(Fragile(good), thirds, RECIPE, tmp_path / "run")
    assert load_model(Fragile(0), tmp_path / "run" / "model.safetensors") == 1
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "run" / "state.safetensors").values())
    train(Fragile(99), thirds, RECIPE, tmp_path / "run", resume=True)
    train(Fragile(99), thirds, RECIPE, tmp_path / "whole")


def test_nan_in_a_sigma_that_no_loss_sees_is_told(thirds, tmp_path):
    """Noise that acts in training only, and a gradient that is NaN in the last step of the second epoch."""
    net, steps = mlp((36, 3)), []
    add_noise(net, ["fc1"], at_inference=False, example=thirds.train.images[:2].float())

    def spoil(gradient):
        steps.append(1)
        return gradient * (float("nan") if len(steps) == 10 else 1.0)

    net.fc1.noise.sigma.register_hook(spoil)
    with pytest.raises(RunError, match="the sigma of fc1 became nan in epoch 2, so training stopped"):
        train(net, thirds, RECIPE, tmp_path / "run")
    assert load_model(net, tmp_path / "run" / "model.safetensors") == 1


def test_a_learning_rate_far_too_large_is_told(thirds):
    with pytest.raises(RunError, match="try a smaller learning rate"):
        train(network(noisy=False), thirds, replace(RECIPE, optimizer="sgd", lr=1e30, epochs=3))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_training_soon(thirds):
    """Ctrl-C reaches the main thread, while the training runs in its own."""
    steps = []

    def progress(step, total, loss):
        steps.append(step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(network(), thirds, replace(RECIPE, epochs=1000), progress=progress)
    assert len(steps) < 500


def test_bad_arguments(thirds):
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match=rf"seed must be at least 0 and below 2\*\*63, got {seed}"):
            train(network(), thirds, RECIPE, seed=seed)
    with pytest.raises(InputError, match="no training or no validation images"):
        train(network(), replace(thirds, validation=thirds.validation[:0]), RECIPE)


def test_measuring_leaves_the_mode_and_averages_over_images(thirds):
    net = network(noisy=False).train()
    loss, accuracy = loss_and_accuracy(net, thirds.validation, batch_size=7)
    assert net.training
    x, y = next(batches(thirds.validation, 40, generator=None))
    with torch.no_grad():
        assert loss == pytest.approx(nn.functional.cross_entropy(net(x), y).item(), rel=1e-5)
        assert accuracy == int((net(x).argmax(1) == y).sum()) / 40


def test_measuring_has_the_noise_of_inference(thirds):
    net = network()
    first, second = (loss_and_accuracy(net, thirds.validation)[0] for _ in range(2))
    assert first != second
    with sampling(net, "off"):
        assert loss_and_accuracy(net, thirds.validation) == loss_and_accuracy(net, thirds.validation)


@pytest.mark.real_data
@pytest.mark.skipif("NOISEPROP_DATA" not in os.environ, reason="needs MNIST under $NOISEPROP_DATA")
def test_an_mlp_reaches_95_percent_on_mnist_in_three_epochs():
    torch.manual_seed(0)
    net, digits = mlp(), split(load("mnist"))
    train(net, digits, Recipe(epochs=3))
    assert len(digits.test) == 10_000
    assert loss_and_accuracy(net, digits.test)[1] >= 0.95


@pytest.mark.slow
def test_a_cnn_repeats_to_the_bit_in_bf16(thirds):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 28, 28), generator=generator, dtype=torch.uint8)
    digits = replace(thirds.train, images=images, labels=torch.arange(300) % 10, classes=tuple("0123456789"))
    parts = replace(thirds, train=digits, validation=digits[:50])
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        net = cnn()
        add_noise(net, where=net.sites["all"], example=torch.zeros(1, 1, 28, 28))
        train(net, parts, Recipe(epochs=2, precision="bf16"))
        runs.append(bits(net))
    assert equal(*runs)
