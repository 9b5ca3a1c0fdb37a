import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from noiseprop import add_noise, noise_layers, sampling
from noiseprop.attacks import pgd
from noiseprop.attacks.eot import loss_gradient, prepare_for_attack
from noiseprop.evaluation.bfloat16 import Bfloat16
from noiseprop.evaluation.scoring import has_inference_noise
from noiseprop.models import cnn


def trained():
    """Return a CNN after some steps on two kinds of bright spots, with such images."""
    torch.manual_seed(0)
    model, generator = cnn(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    def images(count: int):
        y = torch.randint(0, 10, (count,), generator=generator)
        x = 0.3 * torch.rand(count, 1, 28, 28, generator=generator)
        for i, label in enumerate(y.tolist()):
            x[i, 0, 2 * label : 2 * label + 6, 5:20] += 0.4
        return x, y

    for _ in range(25):
        x, y = images(32)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), *images(64)


def test_it_is_the_network_with_fewer_digits_and_as_strong_attacks():
    model, x, y = trained()
    half = Bfloat16(model)
    with torch.no_grad():
        exact, rounded = model(x), half(x)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert float((rounded - exact).abs().max()) < 0.05 * float(exact.abs().max())
    assert float((exact.argmax(1) == y).float().mean()) > 0.8
    assert int((exact.argmax(1) != rounded.argmax(1)).sum()) <= 2
    with prepare_for_attack(half):
        ours, theirs = (loss_gradient(net, x, y).gradient.flatten(1) for net in (half, model))
    assert float(cosine_similarity(ours, theirs).median()) > 0.99
    accuracies = []
    for net in (model, half):
        x_adv = pgd(net, x, y, eps=0.1, step=0.02, steps=8)
        with torch.no_grad():
            accuracies.append(float((net(x_adv).argmax(1) == y).float().mean()))
    assert accuracies[0] < 0.7
    assert abs(accuracies[1] - accuracies[0]) < 0.05


def test_noise_is_that_of_the_network():
    model = add_noise(cnn(), ["fc1"], init=1.0, example=torch.zeros(1, 1, 28, 28)).eval()
    half, x = Bfloat16(model), torch.rand(3, 1, 28, 28)
    assert has_inference_noise(half)
    assert list(noise_layers(half)) == ["model.fc1.noise"]
    with sampling(half, draws=4), torch.no_grad():
        draws = half(x)
    assert draws.shape == (4, 3, 10)
    assert draws.dtype == torch.float32
    assert not torch.equal(draws[0], draws[1])
    with sampling(half, "off"), torch.no_grad():
        assert torch.equal(half(x), half(x))
