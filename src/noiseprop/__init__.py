"""Learn how much Gaussian noise each neuron of a PyTorch network should carry, and judge honestly what it does.

The public names are imported when they are first asked for, so that `noiseprop --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from noiseprop.errors import DataError as DataError
from noiseprop.errors import InputError as InputError
from noiseprop.errors import NoisepropError as NoisepropError
from noiseprop.errors import RunError as RunError

if TYPE_CHECKING:
    from noiseprop.noise.attach.add_noise import add_noise as add_noise
    from noiseprop.noise.attach.add_noise import is_noisy as is_noisy
    from noiseprop.noise.attach.add_noise import noise_layers as noise_layers
    from noiseprop.noise.attach.add_noise import remove_noise as remove_noise
    from noiseprop.noise.attach.selectors import before as before
    from noiseprop.noise.attach.serialization import load_noise as load_noise
    from noiseprop.noise.attach.serialization import save_noise as save_noise
    from noiseprop.noise.diagnostics.inspect_noise import inspect_noise as inspect_noise
    from noiseprop.noise.gaussian_noise import gaussian_noise as gaussian_noise
    from noiseprop.noise.layer import NeuronNoise as NeuronNoise
    from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss as likelihood_ratio_loss
    from noiseprop.noise.sampling import sampling as sampling
    from noiseprop.noise.sigma_adam import SigmaAdam as SigmaAdam
    from noiseprop.noise.sigma_adam import sigmas as sigmas
    from noiseprop.noise.sigma_adam import weights as weights
    from noiseprop.noise.stream import reset_noise as reset_noise

_HOMES = {  # the same for the interpreter; a test holds the two together
    "add_noise": "noise.attach.add_noise",
    "is_noisy": "noise.attach.add_noise",
    "noise_layers": "noise.attach.add_noise",
    "remove_noise": "noise.attach.add_noise",
    "load_noise": "noise.attach.serialization",
    "save_noise": "noise.attach.serialization",
    "inspect_noise": "noise.diagnostics.inspect_noise",
    "NeuronNoise": "noise.layer",
    "likelihood_ratio_loss": "noise.likelihood_ratio",
    "gaussian_noise": "noise.gaussian_noise",
    "SigmaAdam": "noise.sigma_adam",
    "sigmas": "noise.sigma_adam",
    "weights": "noise.sigma_adam",
    "sampling": "noise.sampling",
    "before": "noise.attach.selectors",
    "reset_noise": "noise.stream",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'noiseprop' has no attribute {name!r}")
    value = getattr(import_module(f"noiseprop.{_HOMES[name]}"), name)
    globals()[name] = value  # asked for once only
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
