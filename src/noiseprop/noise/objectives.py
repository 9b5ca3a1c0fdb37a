"""What keeps sigma from vanishing: on the clean loss alone, less noise is nearly always better.

Every objective is used in the same way, in two lines of one's own loop:

    objective = FixedPower(sigmas(model))
    ...
    objective.backward(loss)  # instead of loss.backward()
    optimizer.step()
    objective.project()

Those with a schedule also want `objective.start_epoch(epoch)`. Two of them together:
`one.backward(loss + other.term())`, then both `project()`.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sigma_adam import sigmas, weights

_ENTROPY_OF_UNIT_NORMAL = 0.5 * math.log(2 * math.pi * math.e)  # nats


class Objective:
    """The plain loss: nothing is added to it, and nothing is put right after a step. The base of all others."""

    def start_epoch(self, epoch: int) -> None:
        """Tell which epoch begins, counted from 1."""

    def term(self) -> Tensor | float:
        """What is added to the loss."""
        return 0.0

    def backward(self, loss: Tensor, adversarial: Tensor | None = None) -> None:
        """Add to the gradients of all parameters those of ``loss + adversarial + term()``.

        Args:
            loss: scalar loss on the clean batch, already weighted if there is an adversarial one too.
            adversarial: scalar loss on adversarial examples, if the loop trains on them.
        """
        total = loss if adversarial is None else loss + adversarial
        (total + self.term()).backward()

    def project(self) -> None:
        """Put sigma back where it is allowed to be; call it after the optimizers' steps."""


class Floor(Objective):
    """No sigma below a floor: after a step ``sigma <- sign(sigma) * max(|sigma|, floor)``.

    This is the Euclidean projection on the levels with ``|sigma| >= floor``.

    Args:
        params: the noise levels, `sigmas(model)`.
        floor: smallest magnitude, in units of the pre-activation.

    Raises:
        InputError: there is no sigma, or the floor is not above 0.

    Examples:
        >>> sigma = nn.Parameter(torch.tensor([0.5, -0.01]))
        >>> Floor([sigma], 0.1).project()
        >>> sigma.detach()
        tensor([ 0.5000, -0.1000])

    Source: the minimum that Learn2Perturb (Jeddi et al., 2020, Algorithm 1) clips its noise to, here on its own.
    """

    def __init__(self, params: Iterable[Tensor], floor: float) -> None:
        self.sigmas = _listed(params, type(self))
        self.floor = _positive("floor", floor, type(self))

    @torch.no_grad()
    def project(self) -> None:
        """Move what is below the floor to it."""
        for sigma in self.sigmas:
            sigma.copy_(sigma.abs().clamp_min(self.floor).copysign_(sigma))


class FixedPower(Objective):
    """A fixed total noise power ``sum of sigma^2``; what is learned is how the neurons share it.

    After a step ``sigma <- sigma * sqrt(power / sum of sigma^2)``. This scaling is the Euclidean projection on the
    sphere of radius ``sqrt(power)``: of a small step nothing but its radial part is lost. Each entry of sigma
    counts once, however many neurons share it.

    Args:
        params: the noise levels that share the power: `sigmas(model)`, or those of some layers.
        power: in squared units of the pre-activation; what the levels have now if omitted.

    Raises:
        InputError: there is no sigma, or the power is not above 0.

    Examples:
        >>> sigma = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> FixedPower([sigma], power=1.0).project()
        >>> sigma.detach()
        tensor([0.6000, 0.8000])

    Source: this package; compare the fixed noise budget of water-filling (Cover and Thomas, 2006, section 9.4).
    """

    def __init__(self, params: Iterable[Tensor], power: float | None = None) -> None:
        self.sigmas = _listed(params, type(self))
        self.power = _positive("power", float(_power(self.sigmas)) if power is None else power, type(self))

    @torch.no_grad()
    def project(self) -> None:
        """Scale all levels so that the power is as it was."""
        scale = (self.power / _power(self.sigmas)).sqrt()
        for sigma in self.sigmas:
            sigma.mul_(scale.to(sigma.dtype))


class EntropyBonus(Objective):
    """Minus the noise's differential entropy per neuron: ``-weight * mean(log|sigma| + log(2 pi e) / 2)``.

    Its gradient for each of n levels is ``-weight / (n sigma)``: strong where there is little noise, never gone. A
    sigma of exactly 0 has no finite gradient. The source sums over the neurons; the mean makes the weight independent
    of their number.

    Args:
        params: the noise levels, `sigmas(model)`.
        weight: in units of the loss, per nat.

    Raises:
        InputError: there is no sigma, one of them is 0, or the weight is not above 0.

    Examples:
        >>> sigma = nn.Parameter(torch.tensor([1.0, 0.5]))
        >>> EntropyBonus([sigma], weight=0.1).backward(torch.zeros((), requires_grad=True))
        >>> sigma.grad  # -weight / (2 sigma): descent raises sigma
        tensor([-0.0500, -0.1000])

    Source: ``ln det(2 pi e Sigma) / 2``, the maximum-entropy term of Eustratiadis et al. (2020), arXiv 2010.08852v1.
    """

    def __init__(self, params: Iterable[Tensor], weight: float) -> None:
        self.sigmas = _listed(params, type(self))
        self.weight = _positive("weight", weight, type(self))
        if any(bool((sigma == 0).any()) for sigma in self.sigmas):
            raise InputError("EntropyBonus: a sigma is 0, where the entropy has no finite gradient; start above 0")

    def term(self) -> Tensor:
        """The bonus, as something to minimise."""
        levels = torch.cat([sigma.flatten() for sigma in self.sigmas])
        return -self.weight * (levels.abs().log().mean() + _ENTROPY_OF_UNIT_NORMAL)


class SquareRootBonus(Objective):
    """Learn2Perturb: a bonus ``-(weight / tau) * sum of sqrt(sigma)``, ``tau = 1 + 1/2 + ... + 1/epoch``, and a floor.

    Args:
        params: the noise levels, `sigmas(model)`.
        weight: gamma, in units of the loss; the authors' code uses 1e-4.
        floor: smallest sigma after a step, in units of the pre-activation; the authors' code uses 0.01.

    The bonus weakens as epochs are announced by `start_epoch`, counted from the first one with noise.

    Raises:
        InputError: there is no sigma, or weight or floor is not above 0.

    Examples:
        >>> bonus = SquareRootBonus([nn.Parameter(torch.tensor([0.25, 1.0]))], weight=0.1)
        >>> bonus.start_epoch(2)  # tau = 1 + 1/2
        >>> round(bonus.term().item(), 4)
        -0.1

    Source: Jeddi et al. (2020), Learn2Perturb, Eq. 7 and Algorithm 1.
    """

    def __init__(self, params: Iterable[Tensor], weight: float = 1e-4, floor: float = 0.01) -> None:
        self.sigmas = _listed(params, type(self))
        self.weight = _positive("weight", weight, type(self))
        self.tau = 1.0
        self._floor = Floor(self.sigmas, floor)

    def start_epoch(self, epoch: int) -> None:
        """Set tau to the harmonic number of the epoch, counted from 1."""
        if epoch < 1:
            raise InputError(f"SquareRootBonus: epochs are counted from 1, got {epoch}")
        self.tau = math.fsum(1 / i for i in range(1, epoch + 1))

    def term(self) -> Tensor:
        """The bonus, as something to minimise."""
        return -self.weight / self.tau * torch.stack([sigma.abs().sqrt().sum() for sigma in self.sigmas]).sum()

    def project(self) -> None:
        """Move what is below the floor to it."""
        self._floor.project()


class WeightCovarianceAlignment(Objective):
    """WCA: ``-weight * sum over the classes i of ln(w_i^T Sigma w_i)``, with ``Sigma = diag(sigma^2)``.

    ``w_i^T Sigma w_i`` is the variance that the noise gives to logit i; the more of it, the smaller the bound on how
    far an attack raises the probability of an error. The weights are pulled to where the noise is, and the noise to
    where the weights are, so the readout wants weight decay. The theory holds where the noise reaches the readout
    unchanged, that is where it is added after the last activation. The paper also learns covariances; here Sigma is
    diagonal.

    Args:
        noise: the layer whose noise the readout reads.
        readout: the Linear layer after it; w_i are the rows of its weight.
        weight: lambda, in units of the loss.

    Raises:
        InputError: the noise has neither one sigma nor one per input of the readout, or the weight is not above 0.

    Examples:
        >>> noise, readout = NeuronNoise(3, init=0.5), nn.Linear(3, 2)
        >>> _ = readout.weight.data.fill_(1.0)
        >>> term = WeightCovarianceAlignment(noise, readout, weight=0.1).term()  # -0.1 * 2 ln(3 * 0.5^2)
        >>> round(term.item(), 4)
        0.0575

    Source: Eustratiadis, Gouk, Li and Hospedales (2021), Weight-covariance alignment, Theorem 1 and what follows it.
    """

    def __init__(self, noise: NeuronNoise, readout: nn.Linear, weight: float) -> None:
        if noise.sigma.numel() not in (1, readout.in_features):
            raise InputError(
                f"WeightCovarianceAlignment: the noise has sigma of shape {tuple(noise.sigma.shape)}, the readout has "
                f"{readout.in_features} inputs; choose the noise layer just before the readout"
            )
        self.noise, self.readout = noise, readout
        self.weight = _positive("weight", weight, type(self))

    def term(self) -> Tensor:
        """The alignment, as something to minimise; its gradient reaches sigma and the readout's weights."""
        variance = self.noise.sigma.flatten().square().expand(self.readout.in_features)
        return -self.weight * (self.readout.weight.square() @ variance).log().sum()


class AdversarialSigma(Objective):
    """Sigma learns from the adversarial loss only, the weights from ``loss + adversarial``.

    Use `objective.backward(0.5 * clean, 0.5 * adversarial)`; both losses need graphs of their own passes.

    Args:
        model: the noisy network; its `sigmas(model)` are what the clean loss does not move.

    Raises:
        InputError: the model has no sigma that is learned.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 1), NeuronNoise(1))
        >>> clean, adversarial = net(torch.ones(4, 2)).square().mean(), 0 * net(torch.ones(4, 2)).mean()
        >>> AdversarialSigma(net).backward(clean, adversarial)
        >>> net[1].sigma.grad, bool(net[0].weight.grad.any())
        (tensor([0.]), True)

    Source: this package, after the ensemble loss of PNI (He, Rakin and Fan, 2019), where the noise learns from both.
    """

    def __init__(self, model: nn.Module) -> None:
        _listed(sigmas(model), type(self))
        self.model = model

    def backward(self, loss: Tensor, adversarial: Tensor | None = None) -> None:
        """Back-propagate each loss to the parameters that learn from it.

        Raises:
            InputError: there is no adversarial loss.
        """
        if adversarial is None:
            raise InputError(
                "AdversarialSigma learns sigma from the adversarial loss; call backward(loss, adversarial)"
            )
        loss.backward(inputs=[p for p in weights(self.model) if p.requires_grad])
        adversarial.backward()


def _listed(params: Iterable[Tensor], owner: type) -> list[Tensor]:
    levels = list(params)
    if not levels:
        raise InputError(f"{owner.__name__} got no noise levels; call add_noise(model, ..., learn=True) first")
    return levels


def _positive(name: str, value: float, owner: type) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{owner.__name__}: {name} must be a finite number above 0, got {value}")
    return value


def _power(levels: list[Tensor]) -> Tensor:
    """Sum of squares, in float64."""
    return torch.stack([sigma.detach().double().square().sum() for sigma in levels]).sum()
