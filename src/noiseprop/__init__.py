"""Learn how much Gaussian noise each neuron of a PyTorch network should carry, and judge honestly what it does."""

from noiseprop.errors import DataError as DataError
from noiseprop.errors import InputError as InputError
from noiseprop.errors import NoisepropError as NoisepropError
from noiseprop.errors import RunError as RunError
from noiseprop.noise.attach import add_noise as add_noise
from noiseprop.noise.attach import is_noisy as is_noisy
from noiseprop.noise.attach import noise_layers as noise_layers
from noiseprop.noise.attach import remove_noise as remove_noise
from noiseprop.noise.files import load_noise as load_noise
from noiseprop.noise.files import save_noise as save_noise
from noiseprop.noise.layer import NeuronNoise as NeuronNoise
from noiseprop.noise.op import gaussian_noise as gaussian_noise
from noiseprop.noise.optim import SigmaAdam as SigmaAdam
from noiseprop.noise.optim import sigmas as sigmas
from noiseprop.noise.optim import weights as weights
from noiseprop.noise.sampling import sampling as sampling
from noiseprop.noise.sites import before as before
from noiseprop.noise.stream import reset_noise as reset_noise
