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
    from noiseprop.noise.attach import add_noise as add_noise
    from noiseprop.noise.attach import is_noisy as is_noisy
    from noiseprop.noise.attach import noise_layers as noise_layers
    from noiseprop.noise.attach import remove_noise as remove_noise
    from noiseprop.noise.files import load_noise as load_noise
    from noiseprop.noise.files import save_noise as save_noise
    from noiseprop.noise.inspection import inspect_noise as inspect_noise
    from noiseprop.noise.layer import NeuronNoise as NeuronNoise
    from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss as likelihood_ratio_loss
    from noiseprop.noise.op import gaussian_noise as gaussian_noise
    from noiseprop.noise.optim import SigmaAdam as SigmaAdam
    from noiseprop.noise.optim import sigmas as sigmas
    from noiseprop.noise.optim import weights as weights
    from noiseprop.noise.sampling import sampling as sampling
    from noiseprop.noise.sites import before as before
    from noiseprop.noise.stream import reset_noise as reset_noise

_HOMES = {  # the same for the interpreter; a test holds the two together
    "add_noise": "noise.attach",
    "is_noisy": "noise.attach",
    "noise_layers": "noise.attach",
    "remove_noise": "noise.attach",
    "load_noise": "noise.files",
    "save_noise": "noise.files",
    "inspect_noise": "noise.inspection",
    "NeuronNoise": "noise.layer",
    "likelihood_ratio_loss": "noise.likelihood_ratio",
    "gaussian_noise": "noise.op",
    "SigmaAdam": "noise.optim",
    "sigmas": "noise.optim",
    "weights": "noise.optim",
    "sampling": "noise.sampling",
    "before": "noise.sites",
    "reset_noise": "noise.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'noiseprop' has no attribute {name!r}")
    value = getattr(import_module(f"noiseprop.{_HOMES[name]}"), name)
    globals()[name] = value  # asked for once only
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
