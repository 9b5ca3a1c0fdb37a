"""Check that `add_noise` rejects bad input with the module's path and a remedy, and leaves the model unchanged."""

import copy
from typing import Any

import pytest
import torch
from tests.noise.oracle import snapshot
from torch import Tensor, nn

import noiseprop
from noiseprop import InputError, add_noise, before, noise_layers, remove_noise, sampling


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.parts = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity(), nn.Sequential(), Custom(self.mlp[1])])
        self.taken = Taken()

    def forward(self, x: Tensor) -> Tensor:
        self.parts[0](x)  # whole numbers
        h = self.attention(*[self.embed(x)] * 3)[0]
        self.parts[1](torch.complex(h, h))
        self.parts[2]({"text": "no tensor"})
        self.parts[3](h)
        return self.taken(self.parts[4](self.mlp(h)))


class Custom(nn.Sequential):
    """Sequential with a custom forward that runs its children."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class Taken(nn.Module):
    """Has a `noise` already."""

    noise = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise


X = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("conv", {}, r"no module of Net matches where='conv'; there are '' \(Net\), embed \(Embedding\), attention"),
        ("mlp.3", {}, r"no module of Net matches where='mlp.3'; there are .* mlp.2 \(Linear\)"),
        (["mlp.0", "fc*"], {}, r"no module of Net matches where='fc\*'"),
        (nn.LSTM, {}, r"no module of Net matches where=LSTM"),
        (lambda path, module: False, {}, r"no module of Net matches where="),
        ([], {}, r"add_noise got where=\[\]; pass 'all'"),
        (None, {}, r"add_noise got where=None; pass 'all'"),
        ([nn.Linear(1, 1)], {}, r"a sequence may hold paths of modules and module types"),
        ("parts", {}, r"^parts is never called as a module"),
        ("attention.out_proj", {}, r"^attention.out_proj is never called as a module"),
        (
            "parts.0",
            {},
            r"^parts.0: torch.int64 of shape \(2, 3\) cannot carry Gaussian noise.*select another",
        ),
        ("parts.1", {}, r"^parts.1: torch.complex64 of shape \(2, 3, 4\) cannot carry"),
        (before("embed"), {}, r"^embed: torch.int64 of shape \(2, 3\) cannot carry"),
        ("parts.2", {}, r"^parts.2 passes a dict without a tensor, so noise cannot be added; select a module inside"),
        ("parts.3", {}, r"^parts.3 is an empty Sequential"),
        ("parts.4", {}, r"^parts.4 runs its children in its own `forward`"),
        ("taken", {}, r"^taken already has an attribute `noise`"),
        ("mlp.1", {"init": float("nan")}, r"^mlp.1: add_noise got init=nan; pass a finite number"),
        ("mlp.1", {"init": float("inf")}, r"^mlp.1: add_noise got init=inf"),
        ("mlp.1", {"init": torch.ones(6)}, r"^mlp.1: add_noise got init=tensor.*pass a finite number"),
        ("mlp.1", {"init": None}, r"^mlp.1: add_noise got init=None"),
        ("mlp.1", {"init": "uniform"}, r"^mlp.1: add_noise got init='uniform'"),
        ("mlp.1", {"granularity": "pixel"}, r"add_noise got granularity='pixel'; choose"),
        ("mlp.1", {"key": 0.5}, r"add_noise got key=0.5; pass an integer"),
        ("mlp.1", {"batch_dim": -1}, r"^mlp.1: add_noise got batch_dim=-1"),
        ("mlp.0", {"batch_dim": 3}, r"^mlp.0: torch.float32 of shape \(2, 3, 6\) has no batch axis 3"),
        (
            "mlp.1",
            {"example": X.float()},
            r"^Net could not be called with the example \(RuntimeError: ",
        ),
        ("mlp.1", {"example": (X, X)}, r"^Net could not be called .*\(TypeError: .*pass the model's inputs"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_input_is_rejected_and_nothing_changes(where: Any, options: dict[str, Any], message: str, training: bool):
    torch.manual_seed(0)
    net = Net().train(training)
    state, random_state = snapshot(net), torch.get_rng_state()
    with pytest.raises(InputError, match=message):
        add_noise(net, where, **({"example": X} | options))
    assert snapshot(net) == state
    assert torch.equal(torch.get_rng_state(), random_state)


def test_one_bad_site_spoils_the_whole_call():
    net = Net()
    state = snapshot(net)
    with pytest.raises(InputError, match=r"^parts\.0"):
        add_noise(net, ["mlp.0", "parts.0"], example=X)
    assert snapshot(net) == state


def test_candidates_are_listed_up_to_a_number():
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)])
    with pytest.raises(InputError, match=r"18 \(Linear\) and 21 more$"):
        add_noise(net, "conv", example=torch.zeros(1, 2))


def test_noise_added_twice():
    net = add_noise(Net(), "mlp.0", example=X)
    state = snapshot(net)
    for where in ("linear", "mlp.0", before("mlp.0")):
        with pytest.raises(InputError, match=r"^mlp.0 has noise already; call remove_noise\(model\) first"):
            add_noise(net, where, example=X)
    assert snapshot(net) == state


def test_noise_of_a_part_or_of_a_larger_model():
    """Two streams of one seed would give two layers the same noise, so a model has one."""
    net = Net()
    add_noise(net.mlp, "linear", example=torch.zeros(1, 4))
    state = snapshot(net)
    for call in (lambda: add_noise(net, "attention", example=X), lambda: remove_noise(net)):
        with pytest.raises(InputError, match=r"the noise of mlp.0 was not added to this Net as a whole"):
            call()
    assert snapshot(net) == state
    remove_noise(net.mlp)
    add_noise(net, "attention", example=X)
    with pytest.raises(InputError, match=r"the noise of the model itself was not added to this MultiheadAttention"):
        remove_noise(net.attention)
    remove_noise(net)


def test_a_shape_that_changes_between_calls():
    net = add_noise(Net(), "mlp.0", example=X)
    with pytest.raises(
        InputError,
        match=r"^mlp.0: there is a sigma for each neuron of \(3, 6\), but this call has neurons \(5, 6\)",
    ):
        net(torch.ones(2, 5, dtype=torch.int64))
    assert net(X).shape == (2, 3, 4)


def test_a_sigma_of_one_position_is_not_spread_over_more():
    """(1, F) would broadcast to (T, F) without a word."""
    net = add_noise(nn.Linear(4, 4), "", example=torch.zeros(2, 1, 4))
    with pytest.raises(InputError, match="there is a sigma for each neuron"):
        net(torch.zeros(2, 3, 4))
    net = add_noise(nn.Linear(4, 4), "", example=torch.zeros(2, 4))
    with pytest.raises(InputError, match="the model itself: there is a sigma for each neuron"):
        net(torch.zeros(2, 3, 4))


def test_a_shape_that_changes_within_a_pass():
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(nn.functional.avg_pool2d(self.conv(x), 2))

    with pytest.raises(InputError, match=r"^conv is called with different shapes in one pass.*granularity='channel'"):
        add_noise(Pyramid(), "conv", example=torch.zeros(1, 1, 8, 8))
    net = add_noise(Pyramid(), "conv", granularity="channel", example=torch.zeros(1, 1, 8, 8))
    assert net(torch.zeros(2, 1, 6, 6)).shape == (2, 1, 3, 3)


def test_an_unknown_channel_axis():
    with pytest.raises(InputError, match=r"^0: the channel axis of outputs of shape \(2, 3, 4\) is unknown"):
        add_noise(nn.Sequential(nn.Identity()), "0", granularity="channel", example=torch.zeros(2, 3, 4))


def test_outputs_that_change_their_type_later():
    """Reject integers after a probe with floating-point numbers."""

    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x if x.is_floating_point() else {"no": "tensor"}

    net = add_noise(nn.Sequential(Fickle(), nn.Identity()), ["0"], example=torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"^0 got a dict without a tensor"):
        net(torch.zeros(2, 3, dtype=torch.int64))
    net = add_noise(nn.Sequential(nn.Identity()), ["0"], granularity="layer", example=torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"^0: .*floating-point"):
        net(torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sigma_of_nan_or_infinity(value: float):
    """As it comes out of a state dict, and out of training."""
    x = torch.ones(2, 4)
    net = add_noise(nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), "all", example=x[None])
    state = net.state_dict() | {"1.noise.sigma": torch.full_like(net[1].noise.sigma, value)}
    for training in (True, False):
        fresh = copy.deepcopy(net).train(training)
        fresh.load_state_dict(state)
        with pytest.raises(
            InputError, match=r"^1: sigma holds NaN or infinity; load an earlier state.*smaller learning rate"
        ):
            fresh(x[None])
        with sampling(fresh, "off"):
            assert fresh(x[None])[0].isfinite().all()
    net.eval()(x[None])
    with torch.no_grad():
        net[0].noise.sigma[..., 1] = value
    with pytest.raises(InputError, match=r"^0: sigma holds NaN or infinity"):
        net(x[None])


def test_a_custom_module_that_runs_all_its_children():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            for child in self.children():
                x = child(x)
            return x

    net = nn.Sequential(nn.Linear(3, 3), Chain())
    state = snapshot(net)
    with pytest.raises(InputError, match=r"^1 runs its children in its own `forward`.*select the last module inside"):
        add_noise(net, ["1"], example=torch.zeros(1, 3))
    assert snapshot(net) == state
    assert list(noise_layers(add_noise(net, ["1.b"], example=torch.zeros(1, 3)))) == ["1.b.noise"]


def test_a_shared_module_at_the_end_of_a_sequential():
    """Noise on the ReLU would be noise in both places."""
    relu = nn.ReLU()
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), relu), nn.Sequential(nn.Linear(3, 3), relu))
    with pytest.raises(InputError, match=r"^0.1 would carry the noise of 0, but is .* used elsewhere too.*nn.Identity"):
        add_noise(net, ["0"], example=torch.zeros(1, 3))
    net = nn.Sequential(nn.Linear(3, 3), noiseprop.NeuronNoise(3))
    with pytest.raises(InputError, match=r"^1 would carry the noise of the model, but is a noise layer itself"):
        add_noise(net, "", example=torch.zeros(1, 3))


@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        (nn.Linear(6, 5), (6,), "the model itself: .* of shape (5,)"),
        (nn.Conv2d(2, 5, 3), (2, 6, 6), "the model itself: .* of shape (5, 4, 4)"),
        (nn.ConvTranspose1d(2, 5, 3), (2, 6), "the model itself: .* of shape (5, 8)"),
        (nn.InstanceNorm2d(2), (2, 6, 6), "the model itself: .* of shape (2, 6, 6)"),
        (nn.GRUCell(6, 5), (6,), "the model itself: .* of shape (5,)"),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (4, 6), "self_attn: .* of shape (4, 6)"),
        (nn.TransformerEncoderLayer(6, 2, 8), (4, 6), "self_attn: .* of shape (4, 6)"),
    ],
)
def test_single_samples_without_a_batch_axis(module: nn.Module, shape: tuple[int, ...], says: str, granularity: Any):
    """torch takes them, but the first axis would be taken for the batch, and neurons would share their sigmas."""
    module = copy.deepcopy(module)
    where, state = "all" if isinstance(module, nn.TransformerEncoderLayer) else "", snapshot(module)
    says = says.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        InputError, match=rf"^{says} has no batch axis.*call the model with a batch, at least of one sample$"
    ):
        add_noise(module, where, granularity=granularity, example=torch.ones(shape))
    assert snapshot(module) == state
    add_noise(module, where, granularity=granularity, example=torch.ones(1, *shape))


def test_recurrent_modules_need_a_batch():
    with pytest.raises(InputError, match=r"the output of shape \(5, 6\) has no batch axis.*batch of one sequence"):
        add_noise(nn.LSTM(4, 6), "all", example=torch.zeros(5, 4))
    rnn = add_noise(nn.LSTM(4, 6), "all", granularity="channel")
    with pytest.raises(InputError, match="has no batch axis"):
        rnn(torch.zeros(5, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what torch.compile imports
def test_models_that_are_not_ready():
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    meta[0] = nn.Linear(3, 3)
    with pytest.raises(InputError, match=r"^1.weight is on the meta device.*load the weights"):
        add_noise(meta, "linear", example=torch.zeros(1, 3))
    with pytest.raises(InputError, match=r"^0.weight has no shape yet.*call the model once"):
        add_noise(nn.Sequential(nn.LazyLinear(3)), "linear", example=torch.zeros(1, 3))
    for wrapped in (torch.compile(nn.Linear(3, 3)), nn.DataParallel(nn.Linear(3, 3))):
        with pytest.raises(InputError, match="is wrapped or compiled already; call add_noise on the plain model"):
            add_noise(wrapped, "linear", example=torch.zeros(1, 3))
    compiled = nn.Linear(3, 3)
    compiled.compile()
    with pytest.raises(InputError, match="Linear is wrapped or compiled already"):
        add_noise(compiled, "", example=torch.zeros(1, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_models():
    with pytest.raises(InputError, match="wrapped or compiled"):
        add_noise(torch.jit.script(nn.Linear(3, 3)), "", example=torch.zeros(1, 3))
