# %% [markdown]
# # Evaluate and compare networks
#
# One call measures accuracy on clean, attacked and corrupted images, with and without noise, and flags doubtful
# figures. Two evaluations on the same images can then be compared image by image.

# %%
from dataclasses import replace
from pathlib import Path

import torch

from noiseprop import add_noise
from noiseprop.data import load, split
from noiseprop.evaluation import (
    SETTINGS,
    compare,
    evaluate,
    format_summary,
    mean_std,
    read_evaluation,
    welch,
    write_evaluation,
)
from noiseprop.models import mlp
from noiseprop.training import fast, train

parts = split(load("mnist-5k"))
recipe = fast("mnist-5k", epochs=5)


def trained(seed, noisy):
    torch.manual_seed(seed)
    net = mlp()
    if noisy:
        add_noise(net, "linear", learn=False, example=torch.zeros(1, 1, 28, 28), key=seed)
    train(net, parts, recipe, seed=seed)
    return net


# %% [markdown]
# ## One network
#
# The default settings of a data set are those of Table 2. This example reduces some of them to be quick. An evaluation
# records its settings; comparing two with different settings raises an error.

# %%
settings = replace(
    SETTINGS["mnist-5k"],
    conditions=("clean", "fgsm", "pgd", "gaussian_noise"),
    attack_draws=(1, 10),
    vote_draws=16,
    attack_images=256,
    trust_images=64,
)
noisy = evaluate(trained(0, True), parts.test, settings=settings, about={"model": "MLP+", "seed": 0})
print(format_summary(noisy))

# %% [markdown]
# The result holds the outcome of every image and can be saved as JSON.

# %%
write_evaluation(noisy, Path("noisy.json"))
assert read_evaluation(Path("noisy.json")).accuracy("pgd") == noisy.accuracy("pgd")

# %% [markdown]
# ## Two networks on the same images
#
# The paired test uses the images on which the two networks disagree. It applies to these two trained networks.

# %%
plain = evaluate(trained(0, False), parts.test, settings=settings, about={"model": "MLP", "seed": 0})
for condition in ("clean", "fgsm", "pgd"):
    found = compare(noisy, plain, condition)
    low, high = found.difference.low, found.difference.high
    print(f"{condition}: {found.difference.estimate:+.3f} [{low:+.3f}, {high:+.3f}], p = {found.p_value:.2g}")

# %% [markdown]
# ## Two ways of training
#
# Whether the result holds for other training seeds is a different question. It requires at least three seeds.

# %%
quick = replace(settings, conditions=("clean", "fgsm"), attack_draws=(10,), trust_images=8)
scores = {
    noisy: [evaluate(trained(seed, noisy), parts.test, settings=quick).accuracy("fgsm") for seed in range(3)]
    for noisy in (True, False)
}
difference = welch(scores[True], scores[False])
print(f"FGSM over 3 seeds: with noise {mean_std(scores[True])}, without {mean_std(scores[False])}")
print(f"difference {difference.difference.estimate:+.3f}, p = {difference.p_value:.2g}")
