"""Expected loss over noise draws, and its gradient with respect to the images (EOT), for all attacks.

Every attack uses the gradient of

    L(x, y) = 1/K sum_k loss(model(x; noise_k), y)

over K independent noise draws, fresh for every image and every draw (expectation over transformation, Athalye et al.
2018), so that no attack mistakes one lucky draw for the network.

The state of the model selects the noise: inside `with sampling(model, "off")` or `"frozen"` the network has only one
draw, so K is 1. Outside, noise is fresh in every pass. The passes of an attack draw noise that no other pass draws
(`noiseprop.noise.stream.noise_apart`): scoring draws noise that the attack has not seen, training continues as if
there had been no attack, and two attacks in a row differ. Their noise follows from the noise state of the model, so
`reset_noise` before an attack makes its result repeatable.

Any other randomness (dropout that is on, Bayesian layers, random transformations) is found by comparing passes at the
start of an attack (see `noiseprop.attacks.randomness`). K draws of such a network are K passes, each of which advances
the generators that the network draws from.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from noiseprop.attacks.losses import AttackGoal
from noiseprop.attacks.microbatch import split_batch
from noiseprop.attacks.randomness import has_foreign_randomness, keep_random_states, recognise_randomness
from noiseprop.attacks.validation import check_logits, check_module
from noiseprop.errors import InputError
from noiseprop.files.checksum import derive_seed
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.module_state import preserve_modes
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_apart, noise_of

PartResult = TypeVar("PartResult")

# Draws for the comparison of candidates by expected loss
SCORE_DRAWS = 32

CROSS_ENTROPY = AttackGoal()


class LossGradient(NamedTuple):
    """Expected loss of each image, its gradient with respect to the image, and the logits behind it."""

    loss: Tensor  # (B,), float32 or wider
    gradient: Tensor  # like x
    logits: Tensor  # (K, B, classes)


def is_random(model: nn.Module) -> bool:
    """Return whether passes of the model differ.

    They do if a noise layer acts, and its noise is neither off nor frozen, or if other randomness was found.
    """
    if has_foreign_randomness(model):
        return True
    for layer in model.modules():
        if isinstance(layer, NeuronNoise) and (layer.training or layer.at_inference):
            state = layer.state
            if state.frozen is None and not (state.sampling is not None and state.sampling.off):
                return True
    return False


@contextmanager
def prepare_for_attack(model: nn.Module, x: Tensor | None = None) -> Generator[None]:
    """Put a model into the state that attacks need, and restore it afterwards, also after an exception.

    Inside, a model in training mode is in eval mode (batch norm uses and keeps its running statistics, dropout is off),
    except for noise layers in training mode that would fall silent. In a model in eval mode, dropout that the user has
    switched on stays on, and batch norm is in eval mode. Parameters need no gradient, so none is computed and `.grad`
    is not touched. Gradients with respect to the images are recorded even under `torch.no_grad()` and
    `torch.inference_mode()`, and passes draw noise that no pass outside draws.

    Args:
        model: the network.
        x: images, to find randomness that noiseprop did not add; without them only noise layers count.
    """
    check_module(model)
    acting = [m for m in model.modules() if isinstance(m, NeuronNoise) and m.training and not m.at_inference]
    keeps_dropout = not model.training and any(m.training and is_dropout(m) for m in model.modules())
    with preserve_modes(model, training=None if keeps_dropout else False):
        if keeps_dropout:
            for module in model.modules():
                module.training = is_dropout(module) and module.training
        for layer in acting:
            layer.training = True
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            with ExitStack() as stack:
                for context in (torch.inference_mode(False), torch.enable_grad(), noise_apart(model)):
                    stack.enter_context(context)
                if x is not None:
                    stack.enter_context(recognise_randomness(model, x))
                yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


def loss_gradient(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 1, key: int | None = None, goal: AttackGoal = CROSS_ENTROPY
) -> LossGradient:
    """Return the expected loss of each image and its gradient with respect to that image.

    The losses of the batch are summed, never averaged, so that an image's gradient does not depend on its batch.
    Call it inside `prepare_for_attack(model)`.

    Args:
        model: images (B, ...) to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: labels (B,).
        draws: K, the number of noise draws to average over; a deterministic model needs one.
        key: use the same K draws, those of this key, in every call instead of fresh ones.
        goal: the loss, and how it combines the draws.

    Raises:
        InputError: if the model's logits are not finite or of another shape, y is out of range, or the logits do not
            depend on x in a differentiable way.
    """
    if (draws > 1 or key is not None) and not is_random(model):
        draws, key = 1, None
    if draws > 1 and has_foreign_randomness(model):
        if goal.objective == "mean-logits":
            return _differentiate_mean_logits(model, x, y, draws, key, goal)
        return _average_passes([_run_one_draw(model, x, y, key, draw, goal) for draw in range(draws)])

    def compute_part(rows: slice) -> LossGradient:
        part = x[rows].detach().requires_grad_()
        logits = _compute_logits(model, part, y[rows], draws, key)  # (K, b, classes)
        loss = goal.compute(logits, y[rows])
        return LossGradient(loss.detach(), _differentiate(loss, part), logits.detach())

    found = _map_parts(model, x, draws, compute_part)
    return found[0] if len(found) == 1 else _concatenate_parts(found)


def expected_loss(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 1, goal: AttackGoal = CROSS_ENTROPY
) -> tuple[Tensor, Tensor]:
    """Return the expected loss (B,) of each image over fresh draws, and the logits (K, B, classes).

    Call it inside `prepare_for_attack(model)`, where nothing needs a gradient, so no graph is built.
    """
    draws = draws if draws == 1 or is_random(model) else 1
    if draws > 1 and has_foreign_randomness(model):
        logits = torch.cat([expected_loss(model, x, y)[1] for _ in range(draws)])
        return goal.compute(logits, y), logits
    found = _map_parts(model, x, draws, lambda rows: _compute_logits(model, x[rows], y[rows], draws).detach())
    logits = torch.cat(found, 1)
    return goal.compute(logits, y), logits


def _differentiate(loss: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of each image's loss with respect to the images."""
    gradient = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise InputError(
            "attacks: the logits carry no gradient to the images; remove .detach(), rounding or no_grad from the "
            "model's forward pass, or attack by transfer"
        )
    return gradient


def _run_one_draw(model: nn.Module, x: Tensor, y: Tensor, key: int | None, draw: int, goal: AttackGoal) -> LossGradient:
    """Return the result of one draw of a network with foreign randomness, fresh or of a key."""
    if key is None:
        return loss_gradient(model, x, y, goal=goal)
    with keep_random_states(derive_seed(key, draw)):
        return loss_gradient(model, x, y, key=derive_seed(key, draw, "noise"), goal=goal)


def _differentiate_mean_logits(
    model: nn.Module, x: Tensor, y: Tensor, draws: int, key: int | None, goal: AttackGoal
) -> LossGradient:
    """Return the gradient of the loss of the mean logits over passes, whose graphs are all kept until then."""
    leaf = x.detach().requires_grad_()
    passes: list[Tensor] = []
    for draw in range(draws):
        if key is None:
            passes.append(_compute_logits(model, leaf, y, 1))
            continue
        with keep_random_states(derive_seed(key, draw)):
            passes.append(_compute_logits(model, leaf, y, 1, derive_seed(key, draw, "noise")))
    logits = torch.cat(passes)  # (K, B, classes)
    loss = goal.compute(logits, y)
    return LossGradient(loss.detach(), _differentiate(loss, leaf), logits.detach())


def _average_passes(passes: list[LossGradient]) -> LossGradient:
    loss = torch.stack([found.loss for found in passes]).mean(0)
    gradient = torch.stack([found.gradient for found in passes]).mean(0)
    return LossGradient(loss, gradient, torch.cat([found.logits for found in passes]))


def is_dropout(module: nn.Module) -> bool:
    """Return whether a module is one of torch's dropout layers."""
    return isinstance(module, nn.modules.dropout._DropoutNd)  # pyright: ignore[reportPrivateUsage]


def _map_parts(model: nn.Module, x: Tensor, draws: int, work: Callable[[slice], PartResult]) -> list[PartResult]:
    """Return the result of `work` for each part of a batch, with the noise that its images have in the whole batch."""
    first, *others = split_batch(model, x, draws)
    found: list[PartResult] = []
    for rows in others:
        with noise_of(model, rows.start):
            found.append(work(rows))
    return [work(first), *found]  # the first one last: it advances the noise


def _compute_logits(model: nn.Module, x: Tensor, y: Tensor, draws: int, key: int | None = None) -> Tensor:
    """Return logits (K, B, classes) of one ordinary pass if draws is 1, otherwise of K draws, fresh or of a key.

    The model gets a copy of the images, which it may change in place.
    """
    if draws == 1 and key is None:
        return check_logits(model(x.clone()), y)[None]
    with sampling(model, "fresh" if key is None else "frozen", draws=draws, key=key):
        return check_logits(model(x.clone()), y, draws)


def _concatenate_parts(found: list[LossGradient]) -> LossGradient:
    losses, gradients, logits = zip(*found, strict=True)
    return LossGradient(torch.cat(losses), torch.cat(gradients), torch.cat(logits, 1))
