"""Networks of users: each trains, resumes, loads and evaluates, or is refused before anything is written."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from noiseprop import add_noise, inspect_noise, noise_layers
from noiseprop.data import Dataset, Split, batches
from noiseprop.errors import InputError
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.settings import Settings
from noiseprop.training import Recipe, load_model, loss_and_accuracy, train

RECIPE = Recipe(epochs=2, batch_size=32, lr=1e-2, sigma_lr=1e-2)
LONG = replace(RECIPE, epochs=12)
QUICK = Settings(
    conditions=("clean", "fgsm"),
    attack_images=20,
    attack_draws=(1, 2),
    vote_draws=4,
    vote_images=20,
    trust_images=10,
    batch_size=64,
)


def made_up(count: int, seed: int) -> Dataset:
    """Color images of 3 x 6 x 6 whose brightest third tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 3, 6, 6), generator=generator)
    for row in range(count):
        top = 2 * int(labels[row])
        images[row, :, top : top + 2] += 100
    return Dataset("cifar10", images.to(torch.uint8), labels, ("top", "middle", "bottom"))


@pytest.fixture
def colors() -> Split:
    return Split(made_up(150, 1), made_up(40, 2), made_up(40, 3), seed=7, ratio=(5, 1, 1))


class Masked(nn.Module):
    """Attention over the rows of an image with a causal mask of -inf, and running extremes that start at infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(18, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        self.register_buffer("smallest", torch.tensor(torch.inf))

    def forward(self, x):
        tokens = self.embed(x.transpose(1, 2).flatten(2))  # (B, 6, 8)
        if self.training:
            self.smallest.copy_(torch.minimum(self.smallest, x.min()))
        scores = tokens @ tokens.transpose(1, 2) + self.mask
        return self.head((scores.softmax(-1) @ tokens).mean(1))


class Tied(nn.Module):
    """Autoencoder-like network whose two layers share one weight, also under a third name."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.head = nn.Linear(108, 108), nn.Linear(108, 108), nn.Linear(108, 3)
        self.decode.weight = self.encode.weight
        self.alias = self.encode

    def forward(self, x):
        return self.head(self.decode(self.encode(x.flatten(1)).relu()).relu())


class SharedBuffers(nn.Module):
    """Two buffers over one memory: the second sees what the first one counts. One of them has four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(108, 3)
        self.register_buffer("count", torch.zeros(1, 4, 2, 2))
        self.register_buffer("flat_count", self.count.view(16))
        self.register_buffer("same_count", self.count)

    def forward(self, x):
        if self.training:
            self.count.add_(1)
        return self.head(x.flatten(1)) + 0 * self.flat_count[0]


class Viewed(nn.Module):
    """`view` on the output of a convolution, which channels_last does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(20, 3)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x).relu()).relu().view(len(x), 20))


class Volume(nn.Module):
    """Conv3d over the channels, beside a Conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 8, 2), nn.Linear(8 * 3 * 3 * 3, 3)

    def forward(self, x):
        return self.head(self.conv(self.stem(x).unsqueeze(1)).flatten(1))


class FrozenStem(nn.Module):
    """Custom `train()` that keeps its batch norm in eval mode, and a frozen parameter of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
        self.bias = nn.Parameter(torch.tensor([0.0, 0.0, -torch.inf]), requires_grad=False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(x) + self.bias.clamp(min=-1.0)


def make(kind: type[nn.Module], *, noisy: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = kind()
        if noisy:
            add_noise(net, ["head"], init=0.1, example=torch.rand(2, 3, 6, 6), key=3)
    return net


def bits(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):  # noqa: N818 - nothing is wrong
    """Raised in the middle of an epoch."""


@pytest.mark.parametrize("kind", [Masked, Tied, SharedBuffers, Viewed, Volume, FrozenStem])
def test_it_trains_resumes_loads_evaluates_and_is_inspected(colors, tmp_path, kind):
    whole = make(kind)
    layout = {name: tensor.stride() for name, tensor in whole.state_dict().items()}
    history = train(whole, colors, LONG, tmp_path / "whole")
    assert history[-1].train_accuracy > 0.6
    assert {name: tensor.stride() for name, tensor in whole.state_dict().items()} == layout

    def stop(step, total, loss):
        if step > total // 2:
            raise Stop

    with pytest.raises(Stop):
        train(make(kind), colors, LONG, tmp_path / "parts", progress=stop)
    train(resumed := make(kind), colors, LONG, tmp_path / "parts", resume=True)
    assert same(bits(resumed), bits(whole))
    loaded = make(kind)
    assert load_model(loaded, tmp_path / "whole" / "model.safetensors") == LONG.epochs
    assert same(bits(loaded), bits(whole))
    x, _ = next(batches(colors.test, 40, generator=None))
    assert torch.equal(loaded.eval()(x), whole.eval()(x))
    assert (noise_layers(loaded)["head.noise"].sigma != 0.1).any()
    evaluation = evaluate(loaded, colors.test, settings=QUICK)
    assert evaluation.accuracy("clean") > 0.45
    report = inspect_noise(loaded, batches(colors.test, 20, generator=None))
    assert [layer.path for layer in report] == ["head.noise"]
    assert torch.equal(report[0].sigma, loaded.head.noise.sigma.detach().abs().double())


def test_tied_weights_stay_tied_and_are_trained_once(colors, tmp_path):
    """The same network whose forward pass uses one layer twice learns the same."""
    net = make(Tied, noisy=False)
    train(net, colors, RECIPE, tmp_path / "run")
    assert net.decode.weight is net.encode.weight
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(saved["encode.weight"], saved["decode.weight"])
    assert torch.equal(saved["encode.weight"], net.encode.weight)
    other = make(Tied, noisy=False)
    load_model(other, tmp_path / "run" / "model.safetensors")
    with torch.no_grad():
        other.encode.weight.zero_()
    assert not other.decode.weight.any()

    class Once(Tied):
        def __init__(self) -> None:
            super().__init__()
            del self.decode.weight, self.alias

        def forward(self, x):
            hidden = self.encode(x.flatten(1)).relu()
            return self.head(nn.functional.linear(hidden, self.encode.weight, self.decode.bias).relu())

    untied = make(Once, noisy=False)
    train(untied, colors, RECIPE)
    assert torch.equal(untied.encode.weight, net.encode.weight)


def test_buffers_that_share_memory_count_together(colors, tmp_path):
    net = make(SharedBuffers, noisy=False)
    train(net, colors, RECIPE, tmp_path / "run")
    assert net.same_count is net.count
    assert net.flat_count.data_ptr() == net.count.data_ptr()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    for name in ("count", "flat_count", "same_count"):
        assert (saved[name] == 2 * 5).all()  # once for each of two epochs of five batches, and not for the trial


def test_a_mask_of_infinity_comes_back(colors, tmp_path):
    net = make(Masked, noisy=False)
    train(net, colors, RECIPE, tmp_path / "run")
    other = make(Masked, noisy=False)
    other.mask.zero_()
    load_model(other, tmp_path / "run" / "model.safetensors")
    assert torch.equal(other.mask, torch.full((6, 6), -torch.inf).triu(1))
    assert other.smallest == colors.train.images.min() / 255


def test_a_view_after_a_convolution_learns_what_flatten_does(colors):
    class Flattened(Viewed):
        def forward(self, x):
            return self.head(self.conv2(self.conv1(x).relu()).relu().flatten(1))

    viewed, flattened = make(Viewed, noisy=False), make(Flattened, noisy=False)
    histories = train(viewed, colors, RECIPE), train(flattened, colors, RECIPE)
    assert histories[0][-1].train_loss == pytest.approx(histories[1][-1].train_loss, rel=1e-4)
    assert torch.allclose(viewed.conv2.weight, flattened.conv2.weight, atol=1e-4)
    found = loss_and_accuracy(viewed, colors.validation)
    assert found == pytest.approx((histories[0][-1].validation_loss, histories[0][-1].validation_accuracy))


@pytest.mark.parametrize("kind", [Viewed, Volume, FrozenStem])
def test_a_channels_last_network_comes_back_in_channels_last(colors, kind):
    net = make(kind, noisy=False)
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    strides = {name: parameter.stride() for name, parameter in net.named_parameters()}
    plain = make(kind, noisy=False)
    assert strides != {name: parameter.stride() for name, parameter in plain.named_parameters()}
    histories = train(net, colors, RECIPE), train(plain, colors, RECIPE)
    assert {name: parameter.stride() for name, parameter in net.named_parameters()} == strides
    assert histories[0][-1].train_loss == histories[1][-1].train_loss


def test_a_custom_train_is_obeyed_and_left_as_found(colors):
    net = make(FrozenStem)
    assert net.training
    assert net.norm.training  # nobody has called train() yet
    before = bits(net)
    loss_and_accuracy(net, colors.validation)
    assert net.norm.training
    assert same(
        {k: v for k, v in bits(net).items() if "noise" not in k}, {k: v for k, v in before.items() if "noise" not in k}
    )
    train(net, colors, RECIPE)
    assert net.norm.running_mean.tolist() == [0.0] * 4  # frozen in every pass


# What is refused


class Tuple(nn.Module):
    """Logits and an auxiliary output in training mode, as GoogLeNet returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.side = nn.Linear(108, 3), nn.Linear(108, 3)

    def wrap(self, logits, side):
        return logits, side

    def forward(self, x):
        x = x.flatten(1)
        return self.wrap(self.head(x), self.side(x)) if self.training else self.head(x)


@dataclass
class Output:
    logits: torch.Tensor


class Wrapped(Tuple):
    def wrap(self, logits, side):
        return Output(logits + side)


class Extra(nn.Sequential):
    """Extra state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 3))

    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        assert state == {"steps": 3}


class Complex(nn.Module):
    """Weights in the complex plane, as a Fourier layer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(108, dtype=torch.complex64)), nn.Linear(108, 3)

    def forward(self, x):
        return self.head((torch.fft.fft(x.flatten(1)) * self.weight).abs())


class Expanded(nn.Sequential):
    """Buffer of stride 0, which nothing can be copied into."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 3))
        self.register_buffer("prior", torch.zeros(1).expand(3))


class Infinite(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 3))
        with torch.no_grad():
            self[1].bias[2] = -torch.inf


class Detached(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 3))

    def forward(self, x):
        return super().forward(x).detach()


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


class Narrow(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 2))


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(3))


REFUSED = {
    Tuple: r"train: Tuple returns an object of type tuple in training mode, expected a tensor of logits \(32, 3\)",
    Wrapped: r"train: Wrapped returns an object of type Output in training mode, expected a tensor of logits",
    Extra: r"train: Extra has the state '_extra_state' of type dict, but checkpoints hold tensors only",
    Complex: r"train: Complex has the complex parameter weight, which train does not support; use torch.view_as_real",
    Expanded: r"train: Expanded has the state 'prior', an expanded tensor that a checkpoint cannot fill",
    Infinite: r"train: Infinite has NaN or infinity in the parameter 1.bias; initialize it, or freeze it",
    Detached: r"train: Detached cannot be differentiated: RuntimeError: element 0 of tensors does not require grad",
    Narrow: r"train: Narrow maps images \(32, 3, 6, 6\) to shape \(32, 2\) in training mode, expected logits \(32, 3\)",
    Lazy: r"train: Lazy has the lazy parameter 1.weight; call the model on a batch of images first",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_in_one_sentence_with_nothing_changed(colors, tmp_path, kind):
    torch.manual_seed(0)
    net = kind()
    state = {} if kind is Lazy else copy.deepcopy(net.state_dict())
    generator = torch.get_rng_state()
    with pytest.raises(InputError, match=REFUSED[kind]) as raised:
        train(net, colors, RECIPE, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert net.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in net.parameters())
    for name, value in state.items():
        assert value == {"steps": 3} if name == "_extra_state" else torch.equal(net.state_dict()[name], value)


def test_extra_state_trains_where_nothing_is_saved(colors):
    assert train(Extra(), colors, RECIPE)[-1].train_accuracy > 0.6


def test_a_last_batch_of_one_image_is_refused_where_batch_norm_fails_on_it(colors, tmp_path):
    odd = replace(colors, train=colors.train[:129])
    torch.manual_seed(0)
    net = Normed()
    before = bits(net)
    with pytest.raises(InputError, match=r"Expected more than 1 value per channel.*choose another batch size than 32"):
        train(net, odd, RECIPE, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert same(bits(net), before)
    train(net, odd, replace(RECIPE, batch_size=43), tmp_path / "run")
    assert int(net[2].num_batches_tracked) == 2 * 3  # the trial has left no trace
    train(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), odd, RECIPE)  # one image is enough for it


def test_a_run_that_exists_is_left_alone_by_a_refused_network(colors, tmp_path):
    train(make(Tied), colors, RECIPE, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="Tuple returns an object of type tuple"):
        train(Tuple(), colors, replace(RECIPE, epochs=3), tmp_path / "run", resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
