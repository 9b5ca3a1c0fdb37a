# %% [markdown]
# # Corruptions
#
# Hendrycks and Dietterich's Gaussian noise, impulse noise, glass blur and contrast, in five severities, applied to any
# batch of images, and the accuracy of a network with noise and of one without.

# %%
import matplotlib.pyplot as plt
import torch

from noiseprop import add_noise, sampling
from noiseprop.corruptions import KINDS, SEVERITIES, corrupt, corruption_seed
from noiseprop.data import batches, load, split
from noiseprop.models import mlp
from noiseprop.training import fast, train

parts = split(load("mnist-5k"))


def trained(noisy):
    torch.manual_seed(0)
    net = mlp()
    if noisy:
        add_noise(net, "linear", init=0.5, learn=False, example=torch.zeros(1, 1, 28, 28))
    train(net, parts, fast("mnist-5k", epochs=5))
    return net.eval()


networks = {"no noise": trained(False), "sigma = 0.5": trained(True)}

# %% [markdown]
# The seed of a corruption depends on the data set, the kind and the severity, so all networks see the same corrupted
# images. `params` selects the parameters of CIFAR-10-C, Tiny-ImageNet-C or MNIST-C (the strongest).

# %%
x, y = next(batches(parts.test, 256, generator=None))


def corrupted(kind, severity):
    generator = torch.Generator().manual_seed(corruption_seed("mnist-5k", kind, severity))
    return corrupt(x, kind, severity=severity, params="mnist", generator=generator)


@torch.no_grad()
def accuracy(net, images):
    with sampling(net, draws=10):
        return (net(images).argmax(-1) == y).float().mean().item()


images = {kind: [corrupted(kind, severity) for severity in SEVERITIES] for kind in KINDS}
curves = {
    name: {kind: [accuracy(net, batch) for batch in images[kind]] for kind in KINDS} for name, net in networks.items()
}
for name, by_kind in curves.items():
    print(f"{name}: clean {accuracy(networks[name], x):.3f}")
    for kind, curve in by_kind.items():
        print(f"  {kind:15}", *(f"{value:.3f}" for value in curve))

# %% [markdown]
# One digit under all corruptions; rows are kinds, columns severities.

# %%
figure, axes = plt.subplots(len(KINDS), 6, figsize=(6, 4.4))
for row, kind in zip(axes, KINDS, strict=True):
    for cell, image in zip(row, [x, *images[kind]], strict=True):
        cell.imshow(image[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        cell.set_axis_off()
    row[0].set_title(kind.replace("_", " "), fontsize=8, loc="left")
figure.savefig("corruptions.png", dpi=120)
