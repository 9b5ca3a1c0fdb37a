# %% [markdown]
# # Prevent sigma from collapsing
#
# On the clean loss the exact gradient reduces the noise. Each of these objectives keeps it in a different way; all need
# the same two lines in the loop.

# %%
import torch
from torch.nn.functional import cross_entropy

from noiseprop import SigmaAdam, add_noise, sampling, sigmas, weights
from noiseprop.data import batches, load, split
from noiseprop.models import mlp
from noiseprop.noise.objectives import EntropyBonus, FixedPower, Floor, Objective

parts = split(load("mnist-5k"))
x_test, y_test = next(batches(parts.test, len(parts.test), generator=None))


def trained(make):
    """The mean sigma at the end, its 10 % and 90 % points, and the accuracy of one draw; sigma starts at 1."""
    torch.manual_seed(0)
    model = add_noise(mlp(), "linear", example=x_test[:2])
    objective = make(model)
    adam, sigma_adam = torch.optim.Adam(weights(model), lr=1e-3), SigmaAdam(sigmas(model), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(12):
        for x, y in batches(parts.train, 128, generator=order):
            adam.zero_grad()
            sigma_adam.zero_grad()
            objective.backward(cross_entropy(model(x), y))  # instead of loss.backward()
            adam.step()
            sigma_adam.step()
            objective.project()  # what must hold after a step
    levels = torch.cat([sigma.detach().abs() for sigma in sigmas(model)])
    with torch.no_grad(), sampling(model.eval(), draws=20):
        accuracy = (model(x_test).argmax(-1) == y_test).float().mean().item()
    return levels.mean().item(), *levels.quantile(torch.tensor([0.1, 0.9])).tolist(), accuracy


# %% [markdown]
# - No objective: the noise decreases.
# - Floor: no sigma falls below it.
# - Fixed power: the sum of sigma² is constant; its distribution over the neurons is learned.
# - Entropy bonus: noise itself is rewarded.

# %%
objectives = {
    "the plain loss": lambda model: Objective(),
    "Floor(0.8)": lambda model: Floor(sigmas(model), 0.8),
    "FixedPower": lambda model: FixedPower(sigmas(model)),
    "EntropyBonus(0.2)": lambda model: EntropyBonus(sigmas(model), 0.2),
}
results = {name: trained(make) for name, make in objectives.items()}
print(f"{'':18} mean sigma   10 %   90 %  accuracy of one draw")
for name, (mean, low, high, accuracy) in results.items():
    print(f"{name:18} {mean:10.3f} {low:6.3f} {high:6.3f}  {accuracy:.3f}")
