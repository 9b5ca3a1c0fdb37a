"""Likelihood-ratio estimator: gradients through noise that is followed by functions without derivatives.

If an activation has no useful derivative (a sign, a threshold, a sampled decision), the gradient of Eq. 3 is zero, yet
the expected loss is smooth in sigma and in the weights. With ``z ~ N(x + mu, sigma^2)`` and the loss L of a sample

    d E[L] / d sigma = E[ (L - b) (eps^2 - 1) / sigma ]        d E[L] / d x = E[ (L - b) eps / sigma ]

for any baseline b that does not depend on that sample's eps (Williams, 1992: "Simple statistical gradient-following
algorithms", REINFORCE; Glynn, 1990: "Likelihood ratio gradient estimation"; Schulman et al., 2015: "Gradient estimation
using stochastic computation graphs", for several layers of it, and for a mixture with the pathwise estimator).
"""

# torch has no public way to ask whether a graph is being run backwards:
# pyright: reportPrivateUsage=false

from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError, NoisepropError
from noiseprop.noise.gaussian_noise import gaussian_noise
from noiseprop.noise.sampling_state import PassScope
from noiseprop.noise.stream import find_sources


def likelihood_ratio_loss(model: nn.Module, losses: Tensor) -> Tensor:
    """Return the mean loss, with a gradient that needs no derivative of the layers after the noise.

    Call it once after each forward pass of a model with layers of ``estimator="likelihood-ratio"``. Each loss is
    compared with a baseline that excludes it: the mean over the other draws of the same sample, or, with one draw, over
    the other samples of the batch. Parameters on which the losses depend differentiably, such as those after the last
    noise, and layers with the pathwise estimator get their ordinary gradients.

    Args:
        model: the network that computed the losses in its last pass.
        losses: one loss per sample (B,), or (K, B) under ``sampling(model, draws=K)``. A sample's loss must depend
            on no other sample's noise.

    Returns:
        A scalar: its value is ``losses.mean()``, its gradient an unbiased estimate of the expected loss's.

    Raises:
        InputError: the losses are not one per sample, or a batch norm in training mode mixes the samples.
        NoisepropError: the last pass drew no noise with this estimator.

    Examples:
        >>> import noiseprop
        >>> net = nn.Sequential(nn.Linear(2, 3), noiseprop.NeuronNoise(3, estimator="likelihood-ratio"))
        >>> losses = (net(torch.ones(8, 2)) > 0).float().sum(1)
        >>> likelihood_ratio_loss(net, losses).backward()
        >>> net[0].weight.grad.shape, net[1].sigma.grad.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """
    scopes = {id(source.scope): source.scope for source in find_sources(model)}
    scores = [score for scope in scopes.values() for score in scope.take_scores()]
    _check_losses(model, losses, scores)
    advantages = _compute_advantages(losses.detach()).flatten()
    return losses.mean() + torch.stack([score @ advantages.to(score.dtype) for score in scores]).sum() / len(advantages)


def sample_with_score(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int, scope: PassScope) -> Tensor:
    """Return ``x + mu + sigma * eps`` with the noise of `gaussian_noise`, and record its log-density in the scope."""
    if not torch.is_grad_enabled():
        return gaussian_noise(x, sigma, mu=mu, key=key, draws=draws)
    y, score = _SampleWithScore.apply(x, sigma, mu, key, draws)  # pyright: ignore[reportGeneralTypeIssues]
    if torch._C._current_graph_task_id() == -1:  # not when a checkpointed block is recomputed
        scope.scores.append(score)
    return y


def check_scores_were_used(scope: PassScope) -> None:
    """Raise an error rather than forget the scores of a layer outside `add_noise`, where every call is a pass."""
    if scope.scores and torch.is_grad_enabled():
        raise NoisepropError(
            "a NeuronNoise with estimator='likelihood-ratio' was called again before likelihood_ratio_loss; if it is "
            "used twice in a pass, attach it with add_noise; run passes outside training under torch.no_grad()"
        )


class _SampleWithScore(torch.autograd.Function):
    """Return the sample y without gradient, and per row a zero whose gradient is that of the log-density of y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(sigma, key)
        ctx.draws, ctx.mu_shape = draws, None if mu is None else mu.shape
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        ctx.zeros = {"size": x.shape, "dtype": wide, "device": x.device}
        return gaussian_noise(x, sigma, mu=mu, key=key, draws=draws), x.new_zeros(x.shape[0], dtype=wide)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_y: Tensor | None, to_score: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if to_score is None:
            raise NoisepropError(
                "a noise layer with estimator='likelihood-ratio' has no pathwise gradient; back-propagate "
                "likelihood_ratio_loss(model, losses), or set the layer's estimator to 'pathwise'"
            )
        sigma, key = ctx.saved_tensors
        if bool((sigma == 0).any()):
            raise InputError(
                "a sigma is 0, where the likelihood-ratio estimator is undefined; use the pathwise estimator, or "
                "keep sigma away from 0 with noise.objectives.Floor"
            )
        eps = gaussian_noise(torch.zeros(**ctx.zeros), sigma.new_ones(()), key=key, draws=ctx.draws)
        row = to_score.view(-1, *[1] * (eps.dim() - 1))
        to_x = row * eps / sigma
        to_sigma = (to_x * eps - row / sigma).sum_to_size(sigma.shape) if ctx.needs_input_grad[1] else None
        to_mu = to_x.sum_to_size(ctx.mu_shape) if ctx.needs_input_grad[2] else None
        return to_x, to_sigma, to_mu, None, None


def _compute_advantages(losses: Tensor) -> Tensor:
    """Subtract from each loss the mean of the others: other draws of the sample, or other samples with one draw."""
    others = losses.shape[0] - 1
    if others == 0 and losses.dim() == 2:  # one draw of each sample
        return _compute_advantages(losses[0])[None]
    if others == 0:
        return losses  # a single loss has no baseline
    return (losses - losses.mean(0)) * (1 + 1 / others)


def _check_losses(model: nn.Module, losses: Tensor, scores: list[Tensor]) -> None:
    if not scores:
        raise NoisepropError(
            "the model's last pass drew no noise with estimator='likelihood-ratio'; choose it for its layers, "
            "run the pass with gradients and noise on, and call likelihood_ratio_loss once per pass"
        )
    if losses.dim() not in (1, 2) or any(len(score) != losses.numel() for score in scores):
        raise InputError(
            f"likelihood_ratio_loss got losses of shape {tuple(losses.shape)} for noise of {len(scores[0])} samples; "
            "pass one loss per sample, (B,), or (K, B) with draws=K; cross_entropy gives them with reduction='none'"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise InputError(
                f"{name} is a batch norm in training mode, so the noise of a sample affects the losses of others; "
                "call .eval() on it"
            )
