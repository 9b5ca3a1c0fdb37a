"""Certified radii of randomised smoothing, for noise on the input or on the first affine map of a network.

Let a noise layer with standard deviations Sigma = diag(sigma) follow an affine map A x + b, and let f be any function
behind it. The smoothed classifier returns the most likely class of f(A x + b + Sigma eps). If that class has at least
the probability p > 1/2, the smoothed classifier returns it for every x + delta with

    |Sigma^-1 A delta|_2 < Phi^-1(p).

Noise on the input is the case A = 1. Noise behind a nonlinear layer gives no such bound on the input.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor, nn

from noiseprop.attacks.validation import check_images
from noiseprop.errors import InputError
from noiseprop.evaluation.scoring import derive_noise_key, evaluation_mode
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise

ABSTAIN = -1
_LARGEST_MATRIX = 2**27  # entries of Sigma^-1 A, in float64 1 GiB
_DRAWS_PER_PASS = 2**10


@dataclass(frozen=True)
class Certificate:
    """Certified radii of one smoothed classifier on N images.

    Attributes:
        predicted: (N,) int, the smoothed class, or ABSTAIN.
        correct: (N,) bool, True where the smoothed class is the label.
        radius: (N,) radius in the norm |Sigma^-1 A delta|_2; 0 where the classifier abstains.
        l2: (N,) radius in L2, in input units [0, 1].
        linf: (N,) radius in L-infinity, in input units.
        mean_axis: (N,) geometric mean of the semi-axes of the certified ellipsoid, for noise on the input; None for
            noise behind an affine map that is not square and diagonal.
        n: number of draws behind each radius.
        alpha: probability that a radius is too large, per image.
    """

    predicted: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    radius: npt.NDArray[np.float64]
    l2: npt.NDArray[np.float64]
    linf: npt.NDArray[np.float64]
    mean_axis: npt.NDArray[np.float64] | None
    n: int
    alpha: float

    def certified_accuracy(self, eps: float, *, norm: str = "l2") -> float:
        """Return the share of images that are classified correctly with a radius of at least `eps`.

        Args:
            eps: radius, at least 0.
            norm: "l2", "linf", or "noise" for the norm |Sigma^-1 A delta|_2.
        """
        radii = {"l2": self.l2, "linf": self.linf, "noise": self.radius}
        if norm not in radii:
            raise InputError(f"certified_accuracy got norm={norm!r}; choose 'l2', 'linf' or 'noise'")
        return float((self.correct & (radii[norm] >= eps)).mean())


def certify(
    model: nn.Module, x: Tensor, y: Tensor, *, n0: int = 100, n: int = 10_000, alpha: float = 0.001, seed: int = 0
) -> Certificate:
    """Certify the predictions of a smoothed classifier on a batch of images.

    For each image, `n0` draws select the class and `n` further draws bound its probability from below by Clopper and
    Pearson's interval of level 1 - alpha. The classifier abstains where the bound is at most 1/2.

    Args:
        model: images (B, C, H, W) to logits (B, classes). Its first noise layer must follow an affine map of the input,
            and the rest of the model must depend on the input through this layer only. To smooth any network with noise
            of sigma 0.25 on the input, pass ``nn.Sequential(NeuronNoise((1, 28, 28), init=0.25), network)``.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        n0: draws that select the class.
        n: draws that bound its probability.
        alpha: probability of a wrong certificate, per image.
        seed: seed of the noise.

    Returns:
        The predictions with their radii.

    Raises:
        InputError: the model has no noise at inference; its first noise layer does not follow an affine map of the
            input, is bypassed, or has a sigma of 0; or an argument is out of range.

    Examples:
        >>> net = nn.Sequential(NeuronNoise((1, 2, 2), init=0.5), nn.Flatten(), nn.Linear(4, 2))
        >>> found = certify(net, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), n=1000)
        >>> bool((found.l2 == 0.5 * found.radius).all())
        True

    Source: Cohen, Rosenfeld and Kolter (2019), Certified Adversarial Robustness via Randomized Smoothing, Theorem 1 and
    Section 3.2; the proof holds for any invertible covariance after a change of variables.
    """
    if n0 < 1 or n < 1 or not 0 < alpha < 1:
        raise InputError(f"certify got n0={n0}, n={n}, alpha={alpha}; expected n0 >= 1, n >= 1 and 0 < alpha < 1")
    x, y = check_images(x, y, model)
    with evaluation_mode(model), torch.no_grad():
        layer = _find_certified_layer(model, x[:2])
        whitened = _measure_whitened_map(model, layer, x[:1])
        counts = [_count_classes(model, image[None], draws=(n0, n), key=seed + i) for i, image in enumerate(x)]
    selected = np.array([int(first.argmax()) for first, _ in counts])
    hits = np.array([int(second[k]) for (_, second), k in zip(counts, selected, strict=True)])
    probability = bound_probability(hits, n, alpha=alpha)
    certain = probability > 0.5
    radius = np.where(certain, ndtri(np.where(certain, probability, 0.5)), 0.0)
    predicted = np.where(certain, selected, ABSTAIN)
    return Certificate(
        predicted=predicted,
        correct=predicted == y.cpu().numpy(),
        radius=radius,
        l2=radius / whitened.spectral_norm,
        linf=radius / whitened.linf_norm,
        mean_axis=None if whitened.mean_axis is None else radius * whitened.mean_axis,
        n=n,
        alpha=alpha,
    )


def bound_probability(hits: npt.NDArray[np.int64], n: int, *, alpha: float) -> npt.NDArray[np.float64]:
    """Return the one-sided lower confidence bound of a probability after `hits` of n independent draws.

    Source: Clopper and Pearson (1934): the alpha quantile of Beta(hits, n - hits + 1); 0 for no hit.
    """
    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, alpha), 0.0)


def certify_kept_pixels(certificate: Certificate, sigma: float, kept: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return the radii of isotropic noise on `kept` pixels for a model that ignores all other pixels.

    This is the baseline for a learned sigma per pixel: a model that multiplies its input by a fixed mask is certified
    without a limit along the masked pixels, which counts as the pixel range, 1.

    Args:
        certificate: of the masked model with isotropic noise.
        sigma: standard deviation of the noise.
        kept: number of pixels that the mask keeps, at least 1.
    """
    if kept < 1 or sigma <= 0:
        raise InputError(f"certify_kept_pixels got sigma={sigma} and kept={kept}; expected sigma > 0 and kept >= 1")
    return {"l2": certificate.radius * sigma, "linf": certificate.radius * sigma / math.sqrt(kept)}


@dataclass(frozen=True)
class _WhitenedMap:
    """Norms of Sigma^-1 A: largest singular value, bound of |.|_2 over the L-infinity ball, and mean semi-axis."""

    spectral_norm: float
    linf_norm: float
    mean_axis: float | None


def _find_certified_layer(model: nn.Module, x: Tensor) -> NeuronNoise:
    """Return the first noise layer that runs, after checks that it separates the input from the rest of the model.

    Raises:
        InputError: no layer has noise at inference, or the first one does not certify.
    """
    order: list[NeuronNoise] = []
    layers = [module for module in model.modules() if isinstance(module, NeuronNoise) and module.at_inference]
    if not layers:
        raise InputError("certify: the model has no noise at inference; add noise to its input or to its first layer")
    handles = [layer.register_forward_pre_hook(lambda *_, layer=layer: order.append(layer)) for layer in layers]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise InputError(
            "certify: no noise layer ran in a forward pass; pass the module that contains the noise layers"
        )
    layer = order[0]
    name = next((path for path, noise in noise_layers(model).items() if noise is layer), "the noise layer")
    if order.count(layer) > 1:
        raise InputError(
            f"certify: {name} runs {order.count(layer)} times in a pass, so its noise gives no certificate"
        )
    if type(layer).noisy is not NeuronNoise.noisy:
        raise InputError(f"certify: {name} is a {type(layer).__name__}; expected additive Gaussian noise (NeuronNoise)")
    smallest = float(layer.sigma.abs().min()) if layer.sigma.numel() else 0.0
    if not smallest > 0:
        raise InputError(f"certify: {name} has min |sigma| = {smallest:g}, expected more than 0; raise it with Floor")
    _check_affine(model, layer, x, name)
    _check_separates(model, layer, x, name)
    return layer


def _run_to_layer(model: nn.Module, layer: NeuronNoise, x: Tensor) -> Tensor:
    """Return the input of a noise layer, without noise: A x + b, one row per image."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with sampling(model, "off"):
            model(x)
    finally:
        handle.remove()
    if layer.batch_dim:
        raise InputError("certify: the certified layer must have its batch on axis 0")
    return seen[0].flatten(1)


def _check_affine(model: nn.Module, layer: NeuronNoise, x: Tensor, name: str) -> None:
    """Check on random inputs that the map from the images to the noise layer is affine, sample by sample."""
    generator = torch.Generator().manual_seed(0)
    shape = (8, *x.shape[1:])
    a, b = (4 * torch.randn(shape, generator=generator).to(x) for _ in range(2))
    share = torch.rand((8, *[1] * (x.dim() - 1)), generator=generator).to(x)
    mixed = _run_to_layer(model, layer, share * a + (1 - share) * b)
    ends = [_run_to_layer(model, layer, end) for end in (a, b)]
    weights = share.flatten(1)
    expected = weights * ends[0] + (1 - weights) * ends[1]
    scale = max(float(end.abs().max()) for end in ends) or 1.0
    if not torch.allclose(mixed, expected, rtol=0, atol=1e-3 * scale):
        raise InputError(
            f"certify: {name} does not follow an affine map of the input (the outputs deviate by "
            f"{float((mixed - expected).abs().max()) / scale:.2g} of their range), so its noise gives no certificate; "
            "add noise to the input or behind the first linear layer"
        )


def _check_separates(model: nn.Module, layer: NeuronNoise, x: Tensor, name: str) -> None:
    """Check that the model depends on its input through the noise layer only."""
    with sampling(model, "off"):
        constant: list[Tensor] = []
        handle = layer.register_forward_hook(lambda *call: constant.append(call[2]))
        model(x)
        handle.remove()
        handle = layer.register_forward_hook(lambda *_: constant[0])
        try:
            first, second = model(x), model(1 - x)
        finally:
            handle.remove()
    if not torch.equal(first, second):
        raise InputError(
            f"certify: the input reaches the output past {name}, so its noise gives no certificate; "
            "add noise to the input"
        )


def _measure_whitened_map(model: nn.Module, layer: NeuronNoise, x: Tensor) -> _WhitenedMap:
    """Return the norms of Sigma^-1 A, from the Jacobian of the noise layer's input.

    The bound over the L-infinity ball, max |M delta|_2 for |delta|_inf <= 1, is the smaller one of sqrt(d) |M|_2 and
    sqrt(sum_i |M_i|_1^2); for a diagonal M it is exact.
    """
    inputs, rows = x.numel(), _run_to_layer(model, layer, x).numel()
    sigma = layer.sigma.detach().abs().double().cpu()
    neurons = _get_neuron_shape(model, layer, x)
    sigma = sigma.expand(neurons).reshape(-1)
    if inputs * rows > _LARGEST_MATRIX and inputs != rows:
        raise InputError(
            f"certify: the map to the noise layer has {rows:,} x {inputs:,} entries, expected at most "
            f"{_LARGEST_MATRIX:,}; add noise to the input instead"
        )
    if _is_identity(model, layer, x):
        inverse = 1 / sigma
        return _WhitenedMap(float(inverse.max()), float(inverse.square().sum().sqrt()), float(sigma.log().mean().exp()))
    matrix = _compute_matrix(model, layer, x) / sigma[:, None]
    spectral = float(torch.linalg.matrix_norm(matrix, 2))
    bound = float(matrix.abs().sum(1).square().sum().sqrt())
    return _WhitenedMap(spectral, min(bound, math.sqrt(inputs) * spectral), None)


def _get_neuron_shape(model: nn.Module, layer: NeuronNoise, x: Tensor) -> tuple[int, ...]:
    seen: list[tuple[int, ...]] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:])))
    try:
        with sampling(model, "off"):
            model(x)
    finally:
        handle.remove()
    return seen[0]


def _is_identity(model: nn.Module, layer: NeuronNoise, x: Tensor) -> bool:
    """Check whether the noise layer receives the pixels themselves, in their order."""
    probe = torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(1)).to(x)
    return torch.equal(_run_to_layer(model, layer, probe), probe.flatten(1))


def _compute_matrix(model: nn.Module, layer: NeuronNoise, x: Tensor) -> Tensor:
    """Return A (rows, inputs) in float64: the layer's input for each unit vector minus that for 0."""
    inputs = x.numel()
    zero = _run_to_layer(model, layer, torch.zeros_like(x))
    columns: list[Tensor] = []
    for start in range(0, inputs, 256):
        units = torch.zeros(min(256, inputs - start), inputs, dtype=x.dtype, device=x.device)
        units[torch.arange(len(units)), start + torch.arange(len(units))] = 1
        columns.append((_run_to_layer(model, layer, units.view(-1, *x.shape[1:])) - zero).double().cpu())
    return torch.cat(columns).T


def _count_classes(model: nn.Module, image: Tensor, *, draws: tuple[int, int], key: int) -> list[Tensor]:
    """Count the classes of one image (1, C, H, W) over independent draws, in two groups with separate noise."""
    counts: list[Tensor] = []
    for number, group in enumerate(draws):
        reset_noise(model, derive_noise_key(key, "certify", number))
        total: Tensor | None = None
        for start in range(0, group, _DRAWS_PER_PASS):
            with sampling(model, draws=min(_DRAWS_PER_PASS, group - start)):
                logits = model(image)  # (K, 1, classes)
            count = torch.bincount(logits[:, 0].argmax(-1), minlength=logits.shape[-1])
            total = count if total is None else total + count
        assert total is not None
        counts.append(total.cpu())
    return counts
