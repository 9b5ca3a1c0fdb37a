# %% [markdown]
# # Attack a noisy network
#
# The attacks maximise the loss *expected* over the network's noise, on pixels and for the true label. They are scored
# with fresh noise. [Evaluating noisy networks](../evaluation.md) explains why.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch

from noiseprop import add_noise, sampling
from noiseprop.attacks import apgd, fgsm, pgd, transfer
from noiseprop.data import batches, load, split
from noiseprop.models import mlp
from noiseprop.training import fast, train

parts = split(load("mnist-5k"))
recipe = fast("mnist-5k", epochs=8)


def trained(seed, noisy):
    torch.manual_seed(seed)
    net = mlp()
    if noisy:
        add_noise(net, "linear", learn=False, example=torch.zeros(1, 1, 28, 28))  # sigma = 1, fixed
    train(net, parts, recipe, seed=seed)
    return net.eval()


noisy, plain, surrogate = trained(0, True), trained(0, False), trained(1, False)
x, y = next(batches(parts.test, 256, generator=None))


@torch.no_grad()
def accuracy(net, images):
    """Of a single pass, on average over 20 of them; a network without noise answers the same in each."""
    with sampling(net, draws=20):
        return (net(images).argmax(-1) == y).float().mean().item()


# %% [markdown]
# ## White box
#
# One step, ten steps, and Auto-PGD, which adapts its step sizes. `draws` is the number of noise draws per gradient; it
# has no effect on a network without noise.

# %%
eps = 25 / 255
attacks = {
    "FGSM, one draw": partial(fgsm, eps=eps),
    "FGSM, EOT-20": partial(fgsm, eps=eps, draws=20),
    "PGD-10, one draw": partial(pgd, eps=eps, step=eps / 5, steps=10),
    "PGD-10, EOT-20": partial(pgd, eps=eps, step=eps / 5, steps=10, draws=20),
    "APGD-20, EOT-5": partial(apgd, eps=eps, steps=20, draws=5),
}
print(f"{'':18}  plain  noisy")
print(f"{'clean':18}  {accuracy(plain, x):.3f}  {accuracy(noisy, x):.3f}")
for name, attack in attacks.items():
    print(f"{name:18}  {accuracy(plain, attack(plain, x, y)):.3f}  {accuracy(noisy, attack(noisy, x, y)):.3f}")

# %% [markdown]
# ## Black box
#
# Adversarial images of another network, classified by the noisy one.

# %%
found = transfer(noisy, x, y, surrogate=surrogate, attack=attacks["PGD-10, one draw"], draws=20)
transferred = (found.logits.argmax(-1) == y).float().mean().item()  # (20, 256, 10)
print(f"PGD-10 by transfer on the noisy network: {transferred:.3f}")

# %% [markdown]
# ## With the noise off
#
# Inside `sampling(net, "off")` the network is attacked and scored without its noise. The remaining gain comes from
# training with noise, not from noise at inference.

# %%
with sampling(noisy, "off"):
    silent = accuracy(noisy, pgd(noisy, x, y, eps=eps, step=eps / 5, steps=10))
print(f"PGD-10 with the noise off: {silent:.3f}")

# %% [markdown]
# ## Accuracy against eps

# %%
radii = [n / 255 for n in (0, 5, 10, 15, 20, 25, 30)]
for name, net in (("plain", plain), ("noisy, EOT-10", noisy)):
    curve = [accuracy(net, pgd(net, x, y, eps=r, step=r / 5, steps=10, draws=10)) for r in radii]
    plt.plot([255 * r for r in radii], curve, marker="o", label=name)
plt.xlabel("eps of PGD, in 255ths")
plt.ylabel("accuracy")
plt.legend()
plt.savefig("attacks.png", dpi=120)
