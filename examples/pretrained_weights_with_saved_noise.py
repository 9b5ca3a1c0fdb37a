# %% [markdown]
# # Pretrained weights with saved noise
#
# Freeze pretrained weights, learn only sigma, and save the noise in a small safetensors file. The file can be loaded
# onto the same weights anywhere.

# %%
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from noiseprop import SigmaAdam, add_noise, load_noise, noise_layers, sampling, save_noise, sigmas, weights
from noiseprop.data import batches, load, split
from noiseprop.models import mlp
from noiseprop.noise.objectives import EntropyBonus
from noiseprop.training import fast, train

parts = split(load("mnist-5k"))
torch.manual_seed(0)
pretrained = mlp()
train(pretrained, parts, fast("mnist-5k", epochs=5))
published = {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}  # the weights as downloaded

# %% [markdown]
# ## Learn the noise that these weights tolerate
#
# The entropy bonus rewards noise and the cross-entropy penalises its harm, so each neuron gets the noise that it
# tolerates.

# %%
model = add_noise(pretrained, "linear", init=0.1, example=torch.zeros(1, 1, 28, 28))
for weight in weights(model):
    weight.requires_grad_(False)
sigma_adam = SigmaAdam(sigmas(model), lr=1e-2)
objective = EntropyBonus(sigmas(model), weight=0.1)
order = torch.Generator().manual_seed(0)
for _ in range(8):
    for x, y in batches(parts.train, 128, generator=order):
        sigma_adam.zero_grad()
        objective.backward(cross_entropy(model(x), y))
        sigma_adam.step()
for path, layer in noise_layers(model).items():
    low, high = layer.sigma.min().item(), layer.sigma.max().item()
    print(f"{path}: sigma from {low:.2f} to {high:.2f}, on average {layer.sigma.mean().item():.2f}")

# %% [markdown]
# ## Save the noise and load it onto the same weights

# %%
save_noise(model, "noise.safetensors")
elsewhere = mlp()
elsewhere.load_state_dict(published)
load_noise(elsewhere, "noise.safetensors", key=1)  # the same sigmas; another key draws other noise

x, y = next(batches(parts.test, len(parts.test), generator=None))
with torch.no_grad():
    with sampling(elsewhere, draws=20):
        noisy = (elsewhere(x).argmax(-1) == y).float().mean().item()
    with sampling(elsewhere, "off"):
        silent = (elsewhere(x).argmax(-1) == y).float().mean().item()
print(f"test accuracy: {silent:.3f} without the noise, {noisy:.3f} with it")
print(f"the noise takes {Path('noise.safetensors').stat().st_size:,} bytes")
