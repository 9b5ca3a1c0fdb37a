"""Training objectives that keep sigma from vanishing: on the clean loss alone, less noise is nearly always better.

Every objective takes two lines of a training loop:

    objective = FixedPower(sigmas(model))
    ...
    objective.backward(loss)  # instead of loss.backward()
    optimizer.step()
    objective.project()

Objectives with a schedule also need `objective.start_epoch(epoch)`. To combine two objectives, call
`first.backward(loss + second.term())`, then `project()` of both.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sigma_adam import sigmas, weights

_UNIT_NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # nats


class Objective:
    """Plain loss, without a term or a projection; base class of all objectives."""

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch that begins, counted from 1."""

    def term(self) -> Tensor | float:
        """Return the term that is added to the loss."""
        return 0.0

    def backward(self, loss: Tensor, adversarial: Tensor | None = None) -> None:
        """Back-propagate ``loss + adversarial + term()`` to all parameters.

        Args:
            loss: scalar loss on the clean batch, already weighted if there is also an adversarial loss.
            adversarial: scalar loss on adversarial examples, if the loop trains on them.
        """
        total = loss if adversarial is None else loss + adversarial
        (total + self.term()).backward()

    def project(self) -> None:
        """Move sigma to the nearest allowed values; call it after the optimizers' steps."""


class Floor(Objective):
    """Lower limit on sigma: after a step ``sigma <- sign(sigma) * max(|sigma|, floor)``.

    This is the Euclidean projection on the levels with ``|sigma| >= floor``.

    Args:
        params: the noise levels, `sigmas(model)`.
        floor: smallest magnitude, in units of the pre-activation.

    Raises:
        InputError: the list of sigmas is empty, or the floor is not above 0.

    Examples:
        >>> sigma = nn.Parameter(torch.tensor([0.5, -0.01]))
        >>> Floor([sigma], 0.1).project()
        >>> sigma.detach()
        tensor([ 0.5000, -0.1000])

    Source: lower limit of the noise in Learn2Perturb (Jeddi et al., 2020, Algorithm 1), here without its bonus.
    """

    def __init__(self, params: Iterable[Tensor], floor: float) -> None:
        self.sigmas = _list_levels(params, type(self))
        self.floor = _check_positive("floor", floor, type(self))

    @torch.no_grad()
    def project(self) -> None:
        """Raise each magnitude below the floor to the floor."""
        for sigma in self.sigmas:
            sigma.copy_(sigma.abs().clamp_min(self.floor).copysign_(sigma))


class FixedPower(Objective):
    """Fixed total noise power ``sum of sigma^2``: only its distribution over the neurons is learned.

    After a step ``sigma <- sigma * sqrt(power / sum of sigma^2)``. This scaling is the Euclidean projection on the
    sphere of radius ``sqrt(power)``, which removes only the radial part of a small step. Each entry of sigma counts
    once, regardless of how many neurons share it.

    Args:
        params: the noise levels that share the power: `sigmas(model)`, or those of some layers.
        power: in squared units of the pre-activation; the current power of the levels if omitted.

    Raises:
        InputError: the list of sigmas is empty, or the power is not above 0.

    Examples:
        >>> sigma = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> FixedPower([sigma], power=1.0).project()
        >>> sigma.detach()
        tensor([0.6000, 0.8000])

    Source: this package; compare the fixed noise budget of water-filling (Cover and Thomas, 2006, section 9.4).
    """

    def __init__(self, params: Iterable[Tensor], power: float | None = None) -> None:
        self.sigmas = _list_levels(params, type(self))
        self.power = _check_positive("power", float(_sum_squares(self.sigmas)) if power is None else power, type(self))

    @torch.no_grad()
    def project(self) -> None:
        """Scale all levels to restore the power."""
        scale = (self.power / _sum_squares(self.sigmas)).sqrt()
        for sigma in self.sigmas:
            sigma.mul_(scale.to(sigma.dtype))


class EntropyBonus(Objective):
    """Bonus for the noise's differential entropy per neuron: ``-weight * mean(log|sigma| + log(2 pi e) / 2)``.

    Its gradient for each of n levels is ``-weight / (n sigma)``: strong where there is little noise, and never zero. A
    sigma of exactly 0 has no finite gradient. The source sums over the neurons; the mean makes the weight independent
    of their number.

    Args:
        params: the noise levels, `sigmas(model)`.
        weight: in units of the loss, per nat.

    Raises:
        InputError: the list of sigmas is empty, a sigma is 0, or the weight is not above 0.

    Examples:
        >>> sigma = nn.Parameter(torch.tensor([1.0, 0.5]))
        >>> EntropyBonus([sigma], weight=0.1).backward(torch.zeros((), requires_grad=True))
        >>> sigma.grad  # -weight / (2 sigma): descent raises sigma
        tensor([-0.0500, -0.1000])

    Source: ``ln det(2 pi e Sigma) / 2``, the maximum-entropy term of Eustratiadis et al. (2020), arXiv 2010.08852v1.
    """

    def __init__(self, params: Iterable[Tensor], weight: float) -> None:
        self.sigmas = _list_levels(params, type(self))
        self.weight = _check_positive("weight", weight, type(self))
        if any(bool((sigma == 0).any()) for sigma in self.sigmas):
            raise InputError("EntropyBonus: a sigma is 0, where the entropy has no finite gradient; start above 0")

    def term(self) -> Tensor:
        """Return the negative bonus, to be minimised."""
        levels = torch.cat([sigma.flatten() for sigma in self.sigmas])
        return -self.weight * (levels.abs().log().mean() + _UNIT_NORMAL_ENTROPY)


class SquareRootBonus(Objective):
    """Learn2Perturb: bonus ``-(weight / tau) * sum of sqrt(sigma)``, ``tau = 1 + 1/2 + ... + 1/epoch``, and a floor.

    Args:
        params: the noise levels, `sigmas(model)`.
        weight: gamma, in units of the loss; the authors' code uses 1e-4.
        floor: smallest sigma after a step, in units of the pre-activation; the authors' code uses 0.01.

    The bonus weakens with each epoch that `start_epoch` sets, counted from the first epoch with noise.

    Raises:
        InputError: the list of sigmas is empty, or weight or floor is not above 0.

    Examples:
        >>> bonus = SquareRootBonus([nn.Parameter(torch.tensor([0.25, 1.0]))], weight=0.1)
        >>> bonus.start_epoch(2)  # tau = 1 + 1/2
        >>> round(bonus.term().item(), 4)
        -0.1

    Source: Jeddi et al. (2020), Learn2Perturb, Eq. 7 and Algorithm 1.
    """

    def __init__(self, params: Iterable[Tensor], weight: float = 1e-4, floor: float = 0.01) -> None:
        self.sigmas = _list_levels(params, type(self))
        self.weight = _check_positive("weight", weight, type(self))
        self.tau = 1.0
        self._floor = Floor(self.sigmas, floor)

    def start_epoch(self, epoch: int) -> None:
        """Set tau to the harmonic number of the epoch, counted from 1."""
        if epoch < 1:
            raise InputError(f"SquareRootBonus: epochs are counted from 1, got {epoch}")
        self.tau = math.fsum(1 / i for i in range(1, epoch + 1))

    def term(self) -> Tensor:
        """Return the negative bonus, to be minimised."""
        return -self.weight / self.tau * torch.stack([sigma.abs().sqrt().sum() for sigma in self.sigmas]).sum()

    def project(self) -> None:
        """Raise each magnitude below the floor to the floor."""
        self._floor.project()


class WeightCovarianceAlignment(Objective):
    """Weight-covariance alignment: ``-weight * sum over classes i of ln(w_i^T Sigma w_i)``, ``Sigma = diag(sigma^2)``.

    ``w_i^T Sigma w_i`` is the variance of logit i due to the noise. The larger it is, the smaller is the bound on the
    increase of the error probability by an attack. The weights grow where the noise is large, and the noise grows where
    the weights are large, so the readout needs weight decay. The theory requires noise that reaches the readout
    unchanged, so add it after the last activation. The paper also learns covariances; here Sigma is diagonal.

    Args:
        noise: noise layer whose output is the input of the readout.
        readout: Linear layer after the noise; w_i are the rows of its weight.
        weight: lambda, in units of the loss.

    Raises:
        InputError: the noise has neither one sigma nor one per input of the readout, or the weight is not above 0.

    Examples:
        >>> noise, readout = NeuronNoise(3, init=0.5), nn.Linear(3, 2)
        >>> _ = readout.weight.data.fill_(1.0)
        >>> term = WeightCovarianceAlignment(noise, readout, weight=0.1).term()  # -0.1 * 2 ln(3 * 0.5^2)
        >>> round(term.item(), 4)
        0.0575

    Source: Eustratiadis, Gouk, Li and Hospedales (2021), Weight-covariance alignment, Theorem 1 and the text after it.
    """

    def __init__(self, noise: NeuronNoise, readout: nn.Linear, weight: float) -> None:
        if noise.sigma.numel() not in (1, readout.in_features):
            raise InputError(
                f"WeightCovarianceAlignment: the noise has sigma of shape {tuple(noise.sigma.shape)}, the readout has "
                f"{readout.in_features} inputs; choose the noise layer just before the readout"
            )
        self.noise, self.readout = noise, readout
        self.weight = _check_positive("weight", weight, type(self))

    def term(self) -> Tensor:
        """Return the negative alignment, to be minimised; its gradient reaches sigma and the readout's weights."""
        variance = self.noise.sigma.flatten().square().expand(self.readout.in_features)
        return -self.weight * (self.readout.weight.square() @ variance).log().sum()


class AdversarialSigma(Objective):
    """Adversarial loss alone for sigma, ``loss + adversarial`` for the weights.

    Use `objective.backward(0.5 * clean, 0.5 * adversarial)`; each loss needs the graph of a separate pass.

    Args:
        model: noisy network; the clean loss does not change its `sigmas(model)`.

    Raises:
        InputError: the model has no learned sigma.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 1), NeuronNoise(1))
        >>> clean, adversarial = net(torch.ones(4, 2)).square().mean(), 0 * net(torch.ones(4, 2)).mean()
        >>> AdversarialSigma(net).backward(clean, adversarial)
        >>> net[1].sigma.grad, bool(net[0].weight.grad.any())
        (tensor([0.]), True)

    Source: this package, after the ensemble loss of PNI (He, Rakin and Fan, 2019), where noise learns from both losses.
    """

    def __init__(self, model: nn.Module) -> None:
        _list_levels(sigmas(model), type(self))
        self.model = model

    def backward(self, loss: Tensor, adversarial: Tensor | None = None) -> None:
        """Back-propagate each loss to the parameters that learn from it.

        Raises:
            InputError: the adversarial loss is missing.
        """
        if adversarial is None:
            raise InputError(
                "AdversarialSigma learns sigma from the adversarial loss; call backward(loss, adversarial)"
            )
        loss.backward(inputs=[p for p in weights(self.model) if p.requires_grad])
        adversarial.backward()


def _list_levels(params: Iterable[Tensor], owner: type) -> list[Tensor]:
    levels = list(params)
    if not levels:
        raise InputError(f"{owner.__name__} got no noise levels; call add_noise(model, ..., learn=True) first")
    return levels


def _check_positive(name: str, value: float, owner: type) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{owner.__name__}: {name} must be a finite number above 0, got {value}")
    return value


def _sum_squares(levels: list[Tensor]) -> Tensor:
    """Sum of squares, in float64."""
    return torch.stack([sigma.detach().double().square().sum() for sigma in levels]).sum()
