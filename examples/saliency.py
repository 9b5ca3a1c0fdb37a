# %% [markdown]
# # Saliency
#
# SmoothGrad shows which pixels affect a score (the paper's Eq. 8): squared gradients, averaged over noisy copies of the
# image. For a noisy network the average is also over its noise.

# %%
import matplotlib.pyplot as plt
import torch

from noiseprop import add_noise
from noiseprop.data import batches, load, split
from noiseprop.models import mlp
from noiseprop.saliency import smoothgrad
from noiseprop.training import fast, train

parts = split(load("mnist-5k"))


def trained(noisy):
    torch.manual_seed(0)
    net = mlp()
    if noisy:
        add_noise(net, "linear", learn=False, example=torch.zeros(1, 1, 28, 28))
    train(net, parts, fast("mnist-5k", epochs=5))
    return net


networks = {"without noise": trained(False), "sigma = 1": trained(True)}

# %% [markdown]
# Generators with equal seeds give both networks the same noisy copies.

# %%
x, y = next(batches(parts.test, 8, generator=None))
maps = {
    name: smoothgrad(net, x, y, sigma=0.15, samples=25, generator=torch.Generator().manual_seed(0))  # (8, 28, 28)
    for name, net in networks.items()
}

# %% [markdown]
# Which share of the saliency is on the ink and its nearest neighbours? A network that depends on other pixels can be
# attacked there.

# %%
ink = torch.nn.functional.max_pool2d(x, 3, stride=1, padding=1)[:, 0] > 0.1
for name, found in maps.items():
    share = ((found * ink).sum((1, 2)) / found.sum((1, 2))).mean().item()
    print(f"{name}: {share:.2f} of the saliency on {ink.float().mean().item():.2f} of the pixels")

figure, axes = plt.subplots(3, 8, figsize=(8, 3.2))
for row, (name, pictures) in zip(axes, [("digits", x[:, 0]), *maps.items()], strict=True):
    for cell, picture in zip(row, pictures, strict=True):
        cell.imshow((picture / picture.max()).numpy(), cmap="gray")
        cell.set_axis_off()
    row[0].set_title(name, fontsize=8, loc="left")
figure.savefig("saliency.png", dpi=120)
