# %% [markdown]
# # Noise for your model
#
# `add_noise` works on any `torch.nn.Module`. This example uses a small convolutional network that
# was not written for noise.

# %%
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from noiseprop import SigmaAdam, add_noise, before, inspect_noise, noise_layers, remove_noise, sampling, sigmas, weights
from noiseprop.data import batches, load, split
from noiseprop.report.noise_table import format_noise_table

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(16 * 7 * 7, 10),
)
untouched = set(model.state_dict())

# %% [markdown]
# ## Sites and granularity
#
# A BatchNorm would rescale the noise of the convolution before it. The noise is therefore added after the BatchNorms,
# before the activations, with one sigma per channel for any image size. The classifier gets one sigma per neuron and a
# learned mean. Two calls make the two choices.

# %%
images = torch.zeros(2, 1, 28, 28)
add_noise(model, before(nn.ReLU), granularity="channel", init=0.3, example=images)
add_noise(model, "7", init=0.5, mean=True, example=images)
for path, layer in noise_layers(model).items():
    print(f"{path}: sigma {tuple(layer.sigma.shape)}")

# %% [markdown]
# ## Train it
#
# Any training loop works; only the second optimizer is new.

# %%
parts = split(load("mnist-5k"))
adam, sigma_adam = torch.optim.Adam(weights(model), lr=3e-3), SigmaAdam(sigmas(model), lr=3e-3)
order = torch.Generator().manual_seed(0)
for _ in range(3):
    for x, y in batches(parts.train, 128, generator=order):
        loss = cross_entropy(model(x), y)
        for optimizer in (adam, sigma_adam):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (adam, sigma_adam):
            optimizer.step()

model.eval()
x, y = next(batches(parts.test, len(parts.test), generator=None))
with torch.no_grad(), sampling(model, draws=20):
    accuracy = (model(x).argmax(-1) == y).float().mean().item()  # (20, 714, 10): the mean over 20 draws
print(f"test accuracy of one draw, on average: {accuracy:.3f}")

# %% [markdown]
# ## Look at the noise
#
# Its size relative to the signal, and whether the loss would raise or lower it.

# %%
print(format_noise_table(inspect_noise(model, batches(parts.train, 128, generator=order, drop_last=True))))

# %% [markdown]
# ## Remove it
#
# The original model remains, with its parameters, their names, and the trained weights.

# %%
remove_noise(model)
assert set(model.state_dict()) == untouched
