"""Noise and attacks of the released code, departure by departure, on networks that `build` made.

Source: the paper's released code, as described in `specs.DEPARTURES` and `specs.RESNET_DEPARTURES`.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from noiseprop.attacks.eot import loss_gradient, prepare_for_attack
from noiseprop.data import Dataset
from noiseprop.evaluation.attack_suite import SuiteAttack
from noiseprop.evaluation.bfloat16 import Bfloat16
from noiseprop.evaluation.evaluate import attack_images
from noiseprop.evaluation.results import Evaluation, Measurement
from noiseprop.evaluation.scoring import (
    Outcomes,
    derive_noise_key,
    evaluation_mode,
    has_inference_noise,
    iterate_chunks,
    model_device,
    score_states,
)
from noiseprop.evaluation.settings import ATTACKS, TRANSFERS, Settings
from noiseprop.models.registry import build, get_architecture
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.specs import Protocol, Row

LBFGS_BATCH = 128


def build_row(row: Row, protocol: Protocol, *, seed: int, weight_decay: float, classes: int | None = None) -> nn.Module:
    """Return the network of one row of a table under a protocol, ready for `train`.

    Args:
        row: network.
        protocol: its departures apply.
        seed: of the weights and the noise.
        weight_decay: decay that the optimizer of the weights applies to all its parameters.
        classes: number of logits; None for that of the paper.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes).
    """
    model = build(**model_options(row, protocol, seed=seed, classes=classes))
    if "plain-last-linear" in protocol and row.has_fixed_noise:
        _find_last_noise(model).sigma.zero_()
    layers = [(path, layer) for path, layer in noise_layers(model).items() if isinstance(layer.sigma, nn.Parameter)]
    generator = torch.Generator().manual_seed(seed)
    for path, layer in layers:
        site = model.get_submodule(path.removesuffix(".noise"))
        _initialise_noise(site, layer, protocol, generator)
        _set_up_learning(layer, protocol, weight_decay)
    return model


def model_options(row: Row, protocol: Protocol, *, seed: int, classes: int | None = None) -> dict[str, Any]:
    """Return the arguments of `build` for a row."""
    name = row.model
    if "fixed-sigmoid" in protocol and (row.model, row.activation) == ("MLPN", "sigmoid"):
        name = "MLP+"
    silent = {"silent-plus": Row(name).has_fixed_noise, "silent-learned": row.has_learned_noise}
    at_inference = not any(departure in protocol and applies for departure, applies in silent.items())
    chosen = {"name": name, "activation": row.activation, "seed": seed, "at_inference": at_inference}
    if "after-addition" in protocol:
        chosen["everywhere"] = "all-released"
    if classes not in (None, get_architecture(name).classes):
        chosen["classes"] = classes
    return chosen


def _find_last_noise(model: nn.Module) -> NeuronNoise:
    """Return the noise of the last layer; with sigma = 0 it adds nothing but still draws."""
    return list(noise_layers(model).values())[-1]


@torch.no_grad()
def _initialise_noise(site: nn.Module, layer: NeuronNoise, protocol: Protocol, generator: torch.Generator) -> None:
    """Set the first values of a learned noise layer and of the module that it follows."""
    convolution = layer.sigma.dim() == 3  # also of a block's sum and of the stem's BatchNorm
    if "sigma-start" in protocol:
        if convolution:
            nn.init.xavier_normal_(layer.sigma, generator=generator)  # of the shape (C, H, W), as the code has it
        else:
            layer.sigma.normal_(generator=generator)
    if "linear-start" in protocol and isinstance(site, nn.Linear):
        nn.init.xavier_normal_(site.weight, generator=generator)
        site.bias.normal_(generator=generator)
    if "conv-mean" in protocol and convolution:
        layer.mu = nn.Parameter(torch.empty_like(layer.sigma))
        nn.init.xavier_normal_(layer.mu, generator=generator)
        if "silent-learned" in protocol:
            layer.register_forward_hook(_drop_mean)


def _drop_mean(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Drop the mean when the noise is off, as the released code does; our layers keep it as a bias."""
    return output if layer.training else args[0]


def _set_up_learning(layer: NeuronNoise, protocol: Protocol, weight_decay: float) -> None:
    """Set up the gradient and the optimizer of sigma."""
    sigma = layer.sigma
    has_decay, wants_decay = "sigma-adam" in protocol, "sigma-decay" in protocol
    decay = weight_decay * (wants_decay - has_decay)
    if "gradient-sign" in protocol:
        sigma.register_hook(_make_sign_hook(sigma))
    if decay:
        sigma.register_hook(_make_decay_hook(sigma, decay))
    if "sigma-adam" in protocol:
        parametrize.register_parametrization(layer, "sigma", _SigmaAsWeight())


def _make_sign_hook(sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a hook that turns the exact gradient into that of the released code.

    The code computes z = |sigma| eps and returns g eps = g z / |sigma|. Our layer computes z = sigma eps, which has the
    same distribution, and returns g eps = g z / sigma. So the code returns ours times the sign of sigma. (At sigma = 0
    the code divides 0 by 0; here the gradient is 0.)
    """
    return lambda gradient: gradient * sigma.detach().sign()


def _make_decay_hook(sigma: Tensor, decay: float) -> Callable[[Tensor], Tensor]:
    """Return a hook that adds L2 decay to the gradient, or removes that of an optimizer that adds it (Table 1)."""
    return lambda gradient: gradient + decay * sigma.detach()


class _SigmaAsWeight(nn.Module):
    """Parametrization that makes `layer.sigma` a function of a parameter, which `train` then counts as a weight."""

    def forward(self, sigma: Tensor) -> Tensor:
        return sigma.view_as(sigma)  # a tensor, no longer a parameter


def released_lbfgs(
    model: nn.Module, x: Tensor, y: Tensor, *, step: float, steps: int, draws: int = 1, batch: int = LBFGS_BATCH
) -> Tensor:
    """Raise the mean loss of each `batch` images by one call of `torch.optim.LBFGS(lr=step, max_iter=steps)`.

    All images of a batch share one history and one step length, and stop together: at a gradient below 1e-7, a change
    below 1e-9, or after 1.25 `steps` evaluations. So the strength of the attack depends on the size of the batch. A
    random network draws new noise in each evaluation.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        step: the optimizer's learning rate.
        steps: its largest number of iterations.
        draws: noise draws to average the loss over; the released code has one.
        batch: images that share an optimizer.

    Returns:
        Adversarial images, like x, clamped to [0, 1] at the end.

    Source: lbfgs_attack in Cifar10/WhiteEval.py of the paper's released code, with Table 2's step and N for MNIST; its
    MNIST folder holds no attacks.
    """
    parts = zip(x.split(batch), y.split(batch), strict=True)
    averaged = sampling(model, draws=draws) if has_inference_noise(model) and draws > 1 else nullcontext()
    with prepare_for_attack(model), averaged:
        return torch.cat([_attack_batch(model, part, labels, step, steps) for part, labels in parts])


def _attack_batch(model: nn.Module, x: Tensor, y: Tensor, step: float, steps: int) -> Tensor:
    z = x.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], lr=step, max_iter=steps)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits: Tensor = model(z).flatten(0, -2)  # (draws * B, classes)
        loss = -cross_entropy(logits, y.repeat(len(logits) // len(y)))
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = z.detach()
    return torch.where(moved.isfinite(), moved, x).clamp(0, 1)  # the code would continue with NaN


def make_released_attacks(protocol: Protocol, settings: Settings) -> dict[str, SuiteAttack]:
    """Return the attacks, by name in ATTACKS, that a protocol runs instead of those of `evaluate`, with settings bound.

    Each takes model, images (B, C, H, W) in [0, 1], labels (B,) and draws, and returns images in [0, 1].
    """
    s = settings
    batch = LBFGS_BATCH if "batch-lbfgs" in protocol else 1

    def lbfgs(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
        return released_lbfgs(model, x, y, step=s.lbfgs_step, steps=s.lbfgs_steps, draws=draws, batch=batch)

    if "normalised-attacks" not in protocol:
        return {"lbfgs": lbfgs} if "batch-lbfgs" in protocol else {}
    steps = {"fgsm": (s.fgsm_eps, s.fgsm_eps, 1), "pgd": (s.pgd_eps, s.pgd_step, s.pgd_steps)}
    climbs = {name: _make_signed_ascent(*numbers) for name, numbers in steps.items()}
    return {name: _attack_normalised(attack) for name, attack in (*climbs.items(), ("lbfgs", lbfgs))}


class _Normalised(nn.Module):
    """Network without its own normalisation, on inputs z = (x - mean) / std."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.shift, self.scale = _normalisation_of(model)

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits of normalised images."""
        return self.model(z * self.scale + self.shift)


def _normalisation_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    network = model.model if isinstance(model, Bfloat16) else model
    return network.get_buffer("mean"), network.get_buffer("std")


def _attack_normalised(attack: SuiteAttack) -> SuiteAttack:
    """Return an attack as the code runs it: on normalised images, clamped to [0, 1] at the end.

    The result are the pixels of those images, from mean to mean + std: the clamp alone removes everything darker than
    the mean, or brighter than one standard deviation above it.
    """

    def attack_released(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
        mean, std = _normalisation_of(model)
        z = attack(_Normalised(model), (x - mean) / std, y, draws)
        return (z * std + mean).clamp(0, 1)  # against rounding

    return attack_released


def _make_signed_ascent(eps: float, step: float, steps: int) -> SuiteAttack:
    """Return FGSM or PGD: signed steps, clamped to a ball around the images and then to [0, 1]."""

    def climb_released(model: nn.Module, z: Tensor, y: Tensor, draws: int) -> Tensor:
        moved = z
        with prepare_for_attack(model):
            for _ in range(steps):
                gradient = loss_gradient(model, moved, y, draws=draws).gradient
                moved = (moved + step * gradient.sign()).clamp(z - eps, z + eps).clamp(0, 1)
        return moved

    return climb_released


def add_released_attacks(
    evaluation: Evaluation,
    model: nn.Module,
    surrogate: nn.Module,
    test: Dataset,
    settings: Settings,
    attacks: Mapping[str, SuiteAttack],
) -> Evaluation:
    """Return an evaluation completed by attacks that it lacks, on the same images and in the same states."""
    s = settings
    x, y = attack_images(test, s.attack_images, model_device(model))
    found: list[Measurement] = []

    def measure_outcomes(condition: str, x_adv: Tensor, draws: int) -> Outcomes:
        reset_noise(model, derive_noise_key(s.seed, condition, draws, "score"))
        images = iterate_chunks(x_adv, y[: len(x_adv)])
        return score_states(model, images, len(x_adv), draws=s.vote_draws, rows=s.batch_size, votes=s.vote_images)

    with evaluation_mode(model), evaluation_mode(surrogate):
        for name, attack in attacks.items():
            with sampling(model, "off"):
                x_adv = attack(model, x, y, 1)
            found.append(Measurement(name, "off", 0, 0, measure_outcomes(name, x_adv, 0)["off"]))
            for draws in s.attack_draws if evaluation.noisy else ():
                reset_noise(model, derive_noise_key(s.seed, name, draws, "attack"))
                few = min(len(x), s.eot_images) if draws > 1 else len(x)
                x_adv = attack(model, x[:few], y[:few], draws)
                for state, right in measure_outcomes(name, x_adv, draws).items():
                    if state != "off":
                        found.append(Measurement(name, state, draws, 0, right))
            if f"{name}-transfer" in TRANSFERS:
                x_adv = attack(surrogate, x, y, 1)
                for state, right in measure_outcomes(f"{name}-transfer", x_adv, 0).items():
                    found.append(Measurement(f"{name}-transfer", state, 0, 0, right))
    return replace(evaluation, settings=settings, measurements=(*evaluation.measurements, *found))


def list_replaced_conditions(attacks: Mapping[str, SuiteAttack]) -> frozenset[str]:
    """Return the conditions that `add_released_attacks` measures."""
    return frozenset(c for c in (*ATTACKS, *TRANSFERS) if c.removesuffix("-transfer") in attacks)
