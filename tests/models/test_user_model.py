import pytest
import torch
from torch import nn

from noiseprop import noise_layers
from noiseprop.errors import InputError
from noiseprop.models.user_model import is_user_model, make_user_model
from noiseprop.paper import NAMES

SOURCE = """
import torch
from torch import nn
import noiseprop


def sized(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, classes))


def fixed():
    return sized(3)


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def noisy():
    return noiseprop.add_noise(fixed(), "linear", key=7)  # waits for a first batch


class Net(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, classes))

    def forward(self, x):
        return self.body(x)


def number():
    return 3


def broken():
    return 1 / 0


def needy(width, depth):
    return fixed()


def constant():
    return nn.Flatten()


def bound():
    return nn.Conv2d(1, 1, 9)


def flat():
    return nn.Flatten(), nn.Linear(12, 3)


def frozen():
    return fixed().requires_grad_(False)


value = 3
"""
IMAGE = (3, 2, 2)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A folder of one's own, where `ownnets` and the broken `badnets` lie."""
    import sys

    (tmp_path / "ownnets.py").write_text(SOURCE)
    (tmp_path / "badnets.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "worse.py").write_text("x = 1\nraise RuntimeError('no\\nluck')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("ownnets", "badnets", "worse"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["sized", "fixed", "lazy", "noisy", "Net"])
def test_a_function_or_class_makes_the_network(function):
    net = make_user_model(f"ownnets:{function}", image=IMAGE, classes=3, seed=4)
    assert net(torch.rand(5, *IMAGE)).shape == (5, 3)
    assert all(module.training for module in net.modules())
    again = make_user_model(f"ownnets:{function}", image=IMAGE, classes=3, seed=4)
    other = make_user_model(f"ownnets:{function}", image=IMAGE, classes=3, seed=5)
    fresh = make_user_model(f"ownnets:{function}", image=IMAGE, classes=3, seed=4).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in again.state_dict().items())
    assert any(not torch.equal(value, fresh[key]) for key, value in other.state_dict().items())


def test_torch_s_own_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    make_user_model("ownnets:fixed", image=IMAGE, classes=3, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_added_where_it_is_asked_for():
    net = make_user_model("ownnets:fixed", image=IMAGE, classes=3, seed=4, noise=("1",), granularity="layer", init=0.5)
    ((path, layer),) = noise_layers(net).items()
    assert (path, layer.sigma.tolist()) == ("1.noise", 0.5)
    assert isinstance(layer.sigma, nn.Parameter)
    assert layer.key.tolist()[:2] == [4, 0]
    fixed = make_user_model("ownnets:fixed", image=IMAGE, classes=3, noise=("linear",), learn=False)
    assert list(noise_layers(fixed)) == ["1.noise", "3.noise"]
    assert not any("sigma" in name for name, _ in fixed.named_parameters())


def test_noise_of_the_function_s_own_follows_the_seed():
    net = make_user_model("ownnets:noisy", image=IMAGE, classes=3, seed=4)
    assert noise_layers(net)["1.noise"].key.tolist()[:2] == [4, 0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ownnets:number", "returned int, expected a torch.nn.Module"),
        ("ownnets:flat", "returned tuple, expected"),
        ("ownnets:broken", r"ZeroDivisionError: division by zero \(ownnets.py, line \d+\)"),
        ("ownnets:needy", "needs width, depth; name a function that takes no arguments or `classes`"),
        ("ownnets:constant", r"maps images \(2, 3, 2, 2\) to shape \(2, 12\), expected logits \(2, 3\)"),
        ("ownnets:bound", r"does not take images of shape \(2, 3, 2, 2\): RuntimeError"),
        ("ownnets:frozen", "has no parameters that could be trained"),
        ("ownnets:siced", r"has no function siced; .* \(did you mean sized\?\)"),
        ("ownnets:value", "has no function value"),
        ("ownnet:fixed", "module ownnet was not found in "),
        ("badnets:x", "ModuleNotFoundError: No module named 'nowhere_to_be_found' .*badnets.py, line 1"),
        ("worse:x", r"importing worse failed: RuntimeError: no luck \(worse.py, line 2\)"),
        ("./x.py:fixed", "does not name a function; write package.module:function"),
        ("ownnets:", "does not name a function"),
        (":x", "does not name a function"),
    ],
)
def test_what_is_no_network_is_one_sentence(name, says):
    with pytest.raises(InputError, match=says) as raised:
        make_user_model(name, image=IMAGE, classes=3)
    assert "\n" not in str(raised.value)


def test_a_wrong_place_for_noise_is_told():
    with pytest.raises(InputError, match="no module of Sequential matches where='fc9'"):
        make_user_model("ownnets:fixed", image=IMAGE, classes=3, noise=("fc9",))


def test_images_are_bounded():
    for image in ((1, 10**6, 10**6), (1, 2), (0, 2, 2)):
        with pytest.raises(InputError, match="expected three numbers"):
            make_user_model("ownnets:fixed", image=image, classes=3)


def test_no_network_of_the_paper_is_taken_for_one_s_own():
    assert not any(map(is_user_model, NAMES))
