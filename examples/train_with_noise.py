# %% [markdown]
# # Train with noise
#
# Algorithm 1 of the paper in a plain PyTorch loop: one backward pass, two optimizers. The data are 5,000 real digits,
# the network is the paper's MLP, and training takes some seconds.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

from noiseprop import SigmaAdam, add_noise, noise_layers, sampling, sigmas, weights
from noiseprop.data import batches, load, split
from noiseprop.models import mlp

torch.manual_seed(0)
parts = split(load("mnist-5k"))  # 3,572 digits to learn from, 714 to watch, 714 to test

# %% [markdown]
# `add_noise` changes the model in place. Every output of a Linear layer gets independent noise; `example` provides the
# shapes. `model.parameters()` then includes the sigmas, so the two optimizers take `weights` and `sigmas`.

# %%
model = mlp()  # 784-100-50-10, ReLU
add_noise(model, "linear", example=torch.zeros(1, 1, 28, 28))
adam = torch.optim.Adam(weights(model), lr=1e-3, weight_decay=1e-4)
sigma_adam = SigmaAdam(sigmas(model), lr=1e-3)

order = torch.Generator().manual_seed(0)
history = []
model.train()
for _ in range(15):
    for x, y in batches(parts.train, 128, generator=order):
        adam.zero_grad()
        sigma_adam.zero_grad()
        cross_entropy(model(x), y).backward()
        adam.step()
        sigma_adam.step()
    history.append({path: layer.sigma.mean().item() for path, layer in noise_layers(model).items()})

# %% [markdown]
# The noise also acts in eval mode unless `sampling` turns it off. One pass is one draw. `draws=20` makes twenty draws
# in one call; here they vote.

# %%
model.eval()
x, y = next(batches(parts.test, len(parts.test), generator=None))
with torch.no_grad():
    one = (model(x).argmax(-1) == y).float().mean().item()
    with sampling(model, draws=20):
        vote = (model(x).argmax(-1).mode(0).values == y).float().mean().item()  # (20, 714, 10) before the vote
    with sampling(model, "off"):
        silent = (model(x).argmax(-1) == y).float().mean().item()
print(f"test accuracy: one draw {one:.3f}, vote of 20 {vote:.3f}, noise off {silent:.3f}")

# %% [markdown]
# On the clean loss sigma only decreases: [the mathematics](../mathematics.md#effect-on-the-clean-loss) explains why.

# %%
for path in history[0]:
    plt.plot(range(1, len(history) + 1), [levels[path] for levels in history], label=path.removesuffix(".noise"))
plt.xlabel("epoch")
plt.ylabel("mean sigma")
plt.legend()
plt.savefig("sigma.png", dpi=120)
print("sigma by layer and epoch is in sigma.png")
