"""The released code's attacks where they differ from the paper's, and evaluations completed by them."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from noiseprop.attacks.eot import prepare_for_attack, loss_gradient
from noiseprop.data import Dataset
from noiseprop.evaluation.attack_suite import SuiteAttack
from noiseprop.evaluation.bfloat16 import Bfloat16
from noiseprop.evaluation.evaluate import attack_images
from noiseprop.evaluation.results import Evaluation, Measurement
from noiseprop.evaluation.scoring import Outcomes, iterate_chunks, model_device, evaluation_mode, derive_noise_key, score_states
from noiseprop.evaluation.settings import ATTACKS, TRANSFERS, Settings
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.protocol import Protocol
from noiseprop.paper.released_lbfgs import BATCH, released_lbfgs


def released_attacks(protocol: Protocol, settings: Settings) -> dict[str, SuiteAttack]:
    """The attacks, of ATTACKS, that a protocol has in place of `evaluate`'s, with their settings bound.

    Each takes model, images (B, C, H, W) in [0, 1], labels (B,) and draws, and returns images in [0, 1].
    """
    s = settings
    batch = BATCH if "batch-lbfgs" in protocol else 1

    def lbfgs(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
        return released_lbfgs(model, x, y, step=s.lbfgs_step, steps=s.lbfgs_steps, draws=draws, batch=batch)

    if "normalised-attacks" not in protocol:
        return {"lbfgs": lbfgs} if "batch-lbfgs" in protocol else {}
    steps = {"fgsm": (s.fgsm_eps, s.fgsm_eps, 1), "pgd": (s.pgd_eps, s.pgd_step, s.pgd_steps)}
    climbs = {name: _climb(*numbers) for name, numbers in steps.items()}
    return {name: _on_normalised(attack) for name, attack in (*climbs.items(), ("lbfgs", lbfgs))}


class _Normalised(nn.Module):
    """A network behind its own normalisation: it takes z = (x - mean) / std."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.shift, self.scale = _pixels(model)

    def forward(self, z: Tensor) -> Tensor:
        """Logits of normalised images."""
        return self.model(z * self.scale + self.shift)


def _pixels(model: nn.Module) -> tuple[Tensor, Tensor]:
    network = model.model if isinstance(model, Bfloat16) else model
    return network.get_buffer("mean"), network.get_buffer("std")


def _on_normalised(attack: SuiteAttack) -> SuiteAttack:
    """An attack as the code runs it: on normalised images, which it ends by clamping to [0, 1].

    What comes back are the pixels of those images, from mean to mean + std: the clamp alone takes all that is darker
    than the mean, or brighter than one deviation above it.
    """

    def attacked(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
        mean, std = _pixels(model)
        z = attack(_Normalised(model), (x - mean) / std, y, draws)
        return (z * std + mean).clamp(0, 1)  # against rounding

    return attacked


def _climb(eps: float, step: float, steps: int) -> SuiteAttack:
    """Signed steps in a ball around the images and then in [0, 1], wherever the images lie: FGSM and PGD."""

    def climbed(model: nn.Module, z: Tensor, y: Tensor, draws: int) -> Tensor:
        moved = z
        with prepare_for_attack(model):
            for _ in range(steps):
                gradient = loss_gradient(model, moved, y, draws=draws).gradient
                moved = (moved + step * gradient.sign()).clamp(z - eps, z + eps).clamp(0, 1)
        return moved

    return climbed


def with_attacks(
    evaluation: Evaluation,
    model: nn.Module,
    surrogate: nn.Module,
    test: Dataset,
    settings: Settings,
    attacks: Mapping[str, SuiteAttack],
) -> Evaluation:
    """An evaluation made without some attacks, completed by these on the same images and in the same states."""
    s = settings
    x, y = attack_images(test, s.attack_images, model_device(model))
    found: list[Measurement] = []

    def measure(condition: str, x_adv: Tensor, draws: int) -> Outcomes:
        reset_noise(model, derive_noise_key(s.seed, condition, draws, "score"))
        images = iterate_chunks(x_adv, y[: len(x_adv)])
        return score_states(model, images, len(x_adv), draws=s.vote_draws, rows=s.batch_size, votes=s.vote_images)

    with evaluation_mode(model), evaluation_mode(surrogate):
        for name, attack in attacks.items():
            with sampling(model, "off"):
                x_adv = attack(model, x, y, 1)
            found.append(Measurement(name, "off", 0, 0, measure(name, x_adv, 0)["off"]))
            for draws in s.attack_draws if evaluation.noisy else ():
                reset_noise(model, derive_noise_key(s.seed, name, draws, "attack"))
                few = min(len(x), s.eot_images) if draws > 1 else len(x)
                x_adv = attack(model, x[:few], y[:few], draws)
                for state, right in measure(name, x_adv, draws).items():
                    if state != "off":
                        found.append(Measurement(name, state, draws, 0, right))
            if f"{name}-transfer" in TRANSFERS:
                x_adv = attack(surrogate, x, y, 1)
                for state, right in measure(f"{name}-transfer", x_adv, 0).items():
                    found.append(Measurement(f"{name}-transfer", state, 0, 0, right))
    return replace(evaluation, settings=settings, measurements=(*evaluation.measurements, *found))


def replaced(attacks: Mapping[str, SuiteAttack]) -> frozenset[str]:
    """The conditions that `with_attacks` measures."""
    return frozenset(c for c in (*ATTACKS, *TRANSFERS) if c.removesuffix("-transfer") in attacks)
