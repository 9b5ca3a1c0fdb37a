# %% [markdown]
# # Attack a noisy network
#
# Attacks here climb the loss that is *expected* over the network's noise, in pixels, on the true label. What scores
# them is noise that they have not seen. [Judging noisy networks](../evaluation.md) says why it must be so.

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
# One step, ten steps, and Auto-PGD, which chooses its step sizes itself. `draws` is how many draws of the noise each
# gradient is averaged over; for a network without noise it changes nothing.

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
# Images crafted on another network, and what the noisy one makes of them.

# %%
found = transfer(noisy, x, y, surrogate=surrogate, attack=attacks["PGD-10, one draw"], draws=20)
transferred = (found.logits.argmax(-1) == y).float().mean().item()  # (20, 256, 10)
print(f"PGD-10 by transfer on the noisy network: {transferred:.3f}")

# %% [markdown]
# ## Without its noise
#
# Inside `sampling(net, "off")` the network without its noise is attacked and scored. What is left there was gained by
# training with noise, not by noise at inference.

# %%
with sampling(noisy, "off"):
    silent = accuracy(noisy, pgd(noisy, x, y, eps=eps, step=eps / 5, steps=10))
print(f"PGD-10 with the noise off: {silent:.3f}")

# %% [markdown]
# ## Against eps

# %%
radii = [n / 255 for n in (0, 5, 10, 15, 20, 25, 30)]
for name, net in (("plain", plain), ("noisy, EOT-10", noisy)):
    curve = [accuracy(net, pgd(net, x, y, eps=r, step=r / 5, steps=10, draws=10)) for r in radii]
    plt.plot([255 * r for r in radii], curve, marker="o", label=name)
plt.xlabel("eps of PGD, in 255ths")
plt.ylabel("accuracy")
plt.legend()
plt.savefig("attacks.png", dpi=120)
