import pytest
import torch
from torch import nn

from noiseprop import is_noisy, noise_layers, sigmas
from noiseprop.errors import InputError
from noiseprop.models.registry import SURROGATES, get_architecture
from noiseprop.paper import NAMES, build

HEAD18 = ("head.fc1", "head.fc2", "head.fc3")
BLOCKS18 = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))

SITES = {
    "MLP": (),
    "MLP+": ("fc1", "fc2", "fc3"),
    "MLPN": ("fc1", "fc2", "fc3"),
    "CNN": (),
    "CNN-MLP+": ("fc1", "fc2"),
    "CNN-MLPN": ("fc1", "fc2"),
    "CNN-A+": ("conv1", "conv2", "fc1", "fc2"),
    "CNN-AN": ("conv1", "conv2", "fc1", "fc2"),
    "ResNet18": (),
    "ResNet18-MLP+": HEAD18,
    "ResNet18-MLPN": HEAD18,
    "ResNet18-A+": (*(f"{block}.conv2" for block in BLOCKS18), *HEAD18),
    "ResNet18-AN": (*(f"{block}.conv2" for block in BLOCKS18), *HEAD18),
}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "noise" not in name}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_names_are_those_of_tables_3_to_6_and_the_surrogates():
    deep = ("", "-MLP+", "-A+", "-MLPN", "-AN")
    expected = ["MLP", "MLP+", "MLPN", *(base + s for base in ("CNN", "ResNet18", "ResNet34") for s in deep)]
    assert list(NAMES) == [*expected, "MLP-surrogate", "ResNet18-surrogate", "ResNet34-surrogate"]


@pytest.mark.parametrize("name", SITES)
def test_noise_is_where_the_paper_has_it(name):
    model = build(name)
    layers = noise_layers(model)
    assert set(layers) == {f"{site}.noise" for site in SITES[name]}
    assert all((layer.sigma == 1).all() and layer.at_inference and layer.mu is None for layer in layers.values())
    assert len(sigmas(model)) == (len(SITES[name]) if name.endswith("N") and SITES[name] else 0)


def test_every_element_of_a_feature_map_has_its_own_sigma():
    shapes = {name: tuple(layer.sigma.shape) for name, layer in noise_layers(build("CNN-AN")).items()}
    assert shapes == {
        "conv1.noise": (32, 28, 28),
        "conv2.noise": (64, 14, 14),
        "fc1.noise": (128,),
        "fc2.noise": (10,),
    }


def test_resnet34_has_16_blocks_and_4_linears():
    shapes = [tuple(layer.sigma.shape) for layer in noise_layers(build("ResNet34-AN")).values()]
    maps = [(64, 32, 32)] * 3 + [(128, 16, 16)] * 4 + [(256, 8, 8)] * 6 + [(512, 4, 4)] * 3
    assert shapes == [*maps, (1024,), (512,), (256,), (200,)]


def test_the_released_placement_is_a_choice():
    layers = noise_layers(build("ResNet18-AN", everywhere="all-released"))
    assert set(layers) == {
        "bn1.noise",
        *(f"{block}.sum.noise" for block in BLOCKS18),
        *(f"{fc}.noise" for fc in HEAD18),
    }
    assert set(noise_layers(build("ResNet18-MLPN", everywhere="all-released"))) == {f"{fc}.noise" for fc in HEAD18}


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[3:8], NAMES[8:13]])
def test_variants_of_a_seed_share_their_first_weights(names):
    models = [build(name, seed=5) for name in names]
    assert all(equal(weights(model), weights(models[0])) for model in models[1:])
    other = weights(build(names[0], seed=6))
    assert not equal(other, weights(models[0]))


def test_the_seed_decides_weights_and_noise_and_nothing_outside():
    state = torch.get_rng_state()
    x = torch.rand(4, 1, 28, 28)
    torch.set_rng_state(state)
    first, again, other = build("MLPN", seed=3), build("MLPN", seed=3), build("MLPN", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first.state_dict(), again.state_dict())
    assert torch.equal(first(x), again(x))
    other.load_state_dict({k: v for k, v in first.state_dict().items() if not k.endswith("noise.key")}, strict=False)
    assert equal(weights(other), weights(first))
    assert not torch.equal(again(x), other(x))
    assert not torch.equal(first(x), other(x))


def test_every_choice_of_the_protocols_is_an_argument():
    x = torch.rand(2, 1, 28, 28)
    model = build("MLPN", init=0.25, mean=True, at_inference=False).eval()
    assert (model.fc1.noise.sigma == 0.25).all()
    assert (model.fc1.noise.mu == 0).all()
    assert torch.equal(model(x), model(x))
    normal = torch.cat([s.flatten() for s in sigmas(build("CNN-AN", init="normal"))])
    assert abs(float(normal.detach().mean())) < 0.02
    assert abs(float(normal.detach().std()) - 1) < 0.02


def test_sigmoid_is_the_mlp_s():
    x = torch.rand(2, 1, 28, 28)
    relu, sigmoid = build("MLP"), build("MLP", activation="sigmoid")
    assert equal(weights(relu), weights(sigmoid))
    hidden = torch.sigmoid(sigmoid.fc2(torch.sigmoid(sigmoid.fc1(x.flatten(1)))))
    torch.testing.assert_close(sigmoid(x), sigmoid.fc3(hidden))
    with pytest.raises(InputError, match="only the MLP has a sigmoid variant"):
        build("CNN-AN", activation="sigmoid")


def test_surrogates_are_plain_with_the_notes_shapes():
    assert [p.shape[0] for n, p in build(SURROGATES["mnist"]).named_parameters() if n.endswith("bias")] == [
        300,
        150,
        10,
    ]
    assert build(SURROGATES["cifar10"]).head.fc1.weight.shape == (10, 512)
    assert build(SURROGATES["tiny-imagenet"]).head.fc1.weight.shape == (200, 2048)
    assert not any(is_noisy(build(name)) for name in SURROGATES.values())


def test_classes_may_differ():
    model = build("MLPN", classes=3)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 3)
    assert model.fc3.noise.sigma.shape == (3,)
    assert get_architecture("MLPN").classes == 10


def test_bad_arguments_are_one_sentence():
    with pytest.raises(InputError, match=r"'MLPX' is not a network of the paper; choose one of MLP, MLP\+, MLPN, CNN"):
        build("MLPX")
    for seed in (-1, 2**63):
        with pytest.raises(InputError, match=rf"seed must be at least 0 and below 2\*\*63, got {seed}"):
            build("MLPN", seed=seed)
    for classes in (0, 1, 10**12):
        with pytest.raises(InputError, match=f"MLP has {classes} classes; expected between 2 and 100,000"):
            build("MLP", classes=classes)
    with pytest.raises(InputError, match="has no noise sites 'all-released'; choose one of fc, all"):
        build("CNN-AN", everywhere="all-released")
