"""One test for each kind of module: its noise is that of Eq. 1 at its place in the stream, to the bit, and goes again.

docs/any-network.md names them; tests/noise/test_any_network_page.py holds the two together.
"""

import copy
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from tests.noise.oracle import noisy, snapshot
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import noiseprop
from noiseprop import InputError, add_noise, noise_layers, remove_noise


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that differ everywhere."""
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=dtype).view(shape)


def check(module: nn.Module, x: Tensor, *, channel: tuple[int, ...], batch_dim: int = 0, where: Any = ("",)) -> None:
    """Noise on a module that returns one tensor: neuron and channel granularity, eval and training, and removal."""
    torch.manual_seed(0)
    module.eval()
    state, clean = snapshot(module), module(x)
    add_noise(module, where, init=0.5, example=x, batch_dim=batch_dim)
    (noise,) = noise_layers(module).values()
    assert noise.sigma.shape == clean.movedim(batch_dim, 0).shape[1:]
    assert torch.equal(module(x), noisy(clean, 0.5, batch_dim=batch_dim))
    assert torch.equal(module(x), noisy(clean, 0.5, batch_dim=batch_dim, passes=1))
    (module(x) * clean.detach()).sum().backward()
    eps = noisy(torch.zeros_like(clean), 1.0, batch_dim=batch_dim, passes=2)
    torch.testing.assert_close(noise.sigma.grad, (eps * clean.detach()).sum(batch_dim), rtol=1e-5, atol=1e-5)  # Eq. 3
    with noiseprop.sampling(module, "off"):
        assert torch.equal(module(x), clean)
    module.zero_grad()
    remove_noise(module)
    assert torch.equal(module(x), clean)
    add_noise(module, where, init=0.5, granularity="channel", example=x, batch_dim=batch_dim)
    (noise,) = noise_layers(module).values()
    assert noise.sigma.shape == channel
    assert torch.equal(module(x), noisy(clean, 0.5, batch_dim=batch_dim))
    remove_noise(module)
    for parameter in module.parameters():
        parameter.grad = None
    assert snapshot(module) == state


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_linear(shape: tuple[int, ...]):
    check(nn.Linear(4, 5), tokens(2, *shape), channel=(5,))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3), (3, 7)),
        (nn.Conv2d(3, 4, 3, stride=2), (3, 7, 6)),
        (nn.Conv3d(3, 4, 3), (3, 5, 6, 4)),
    ],
)
def test_convolution(layer: nn.Module, shape: tuple[int, ...]):
    check(layer, tokens(2, *shape), channel=(4, *[1] * (len(shape) - 1)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(3, 4, 3), (3, 7)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 4, 5)),
        (nn.ConvTranspose3d(3, 4, 2), (3, 3, 4, 2)),
    ],
)
def test_transposed_convolution(layer: nn.Module, shape: tuple[int, ...]):
    check(layer, tokens(2, *shape), channel=(4, *[1] * (len(shape) - 1)))


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_and_depthwise_convolution(groups: int):
    check(nn.Conv2d(4, 8, 3, groups=groups), tokens(2, 4, 6, 6), channel=(8, 1, 1))


def test_channels_last_stays_channels_last():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = tokens(2, 3, 6, 6).to(memory_format=torch.channels_last)
    clean = conv(x)
    add_noise(conv, "", example=x)
    y = conv(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, noisy(clean.contiguous(), 1.0))


@pytest.mark.parametrize(
    ("layer", "shape", "channel"),
    [
        (nn.BatchNorm1d(4), (4,), (4,)),
        (nn.BatchNorm1d(4), (4, 7), (4, 1)),
        (nn.BatchNorm2d(4), (4, 5, 6), (4, 1, 1)),
        (nn.BatchNorm3d(4), (4, 2, 3, 5), (4, 1, 1, 1)),
        (nn.InstanceNorm2d(4), (4, 5, 6), (4, 1, 1)),
        (nn.GroupNorm(2, 4), (4, 5, 6), (4, 1, 1)),
    ],
)
def test_batch_norm_and_its_kin(layer: nn.Module, shape: tuple[int, ...], channel: tuple[int, ...]):
    check(layer, tokens(3, *shape), channel=channel)


def test_batch_norm_in_training_has_the_statistics_of_the_clean_input():
    bn, x = nn.BatchNorm1d(4), tokens(6, 4)
    twin = copy.deepcopy(bn)
    add_noise(bn, "", example=x)
    assert torch.equal(bn(x), noisy(twin(x), 1.0))
    assert torch.equal(bn.running_var, twin.running_var)


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.LayerNorm((3, 4)), nn.RMSNorm(4)])
def test_layer_norm(layer: nn.Module):
    check(layer, tokens(2, 3, 4), channel=(4,))


def test_embedding():
    check(nn.Embedding(9, 4), torch.tensor([[1, 2, 2], [0, 8, 1]]), channel=(4,))


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(9, 4), nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.token(x) + self.position(torch.arange(x.shape[1])[None])


def test_position_embeddings_are_one_row_for_all_samples():
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.warns(UserWarning, match=r"^position: .* \(1, 3, 4\) for 2 samples.*samples share their noise") as told:
        add_noise(Positions(), nn.Embedding, example=tokens)
    assert [warning.filename for warning in told] == [__file__]
    add_noise(Positions(), "token", example=tokens)
    add_noise(Positions(), nn.Embedding, example=tokens[:1])  # with one sample nobody can tell


# Recurrent modules


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return kind(4, 6, num_layers=2, **options)


def states(returned: tuple[Tensor, Any]) -> tuple[Tensor, Tensor]:
    sequence, last = returned
    return sequence, last[0] if isinstance(last, tuple) else last


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_recurrent(kind: type[nn.RNNBase], batch_first: bool, bidirectional: bool):
    """Check the noise of the sequence and of the top layer's last hidden states, which are entries of it."""
    rnn = recurrent(kind, batch_first=batch_first, bidirectional=bidirectional)
    x = tokens(2, 5, 4) if batch_first else tokens(5, 2, 4)
    state = snapshot(rnn)
    clean, hidden = states(rnn(x))
    add_noise(rnn, "all", example=x)
    width, batch = 12 if bidirectional else 6, 0 if batch_first else 1
    assert rnn.noise.sigma.shape == (5, width)
    sequence, last = states(rnn(x))
    assert torch.equal(sequence, noisy(clean, 1.0, batch_dim=batch))
    assert sequence.is_contiguous() or batch_first
    by_time = sequence if batch_first else sequence.transpose(0, 1)
    top = 2 if bidirectional else 1
    assert torch.equal(last[:-top], hidden[:-top])
    assert torch.equal(last[-top], by_time[:, -1, :6])
    if bidirectional:
        assert torch.equal(last[-1], by_time[:, 0, 6:])
    with noiseprop.sampling(rnn, "off"):
        assert torch.equal(states(rnn(x))[0], clean)
    remove_noise(rnn)
    assert snapshot(rnn) == state


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_with_a_projection():
    rnn = recurrent(nn.LSTM, batch_first=True, proj_size=3, bidirectional=True)
    add_noise(rnn, "all", granularity="channel")
    assert rnn.noise.sigma.shape == (6,)
    sequence, (hidden, cell) = rnn(tokens(2, 5, 4))
    assert torch.equal(hidden[-2], sequence[:, -1, :3])
    assert cell.shape == (4, 2, 6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("lengths", [[5, 3, 1], [2, 5, 4]])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_on_packed_sequences(kind: type[nn.RNNBase], lengths: list[int], batch_first: bool):
    """Check that a sample's noise does not depend on its place in the pack, and that outputs are packed alike."""
    rnn = recurrent(kind, batch_first=batch_first, bidirectional=True)
    x = tokens(3, 5, 4) if batch_first else tokens(5, 3, 4)
    in_order = lengths == sorted(lengths, reverse=True)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=in_order)
    clean, hidden = states(rnn(packed))
    add_noise(rnn, "all", example=(packed,))
    assert rnn.noise.sigma.shape == (5, 12)
    sequence, last = states(rnn(packed))
    assert isinstance(sequence, PackedSequence)
    assert torch.equal(sequence.batch_sizes, clean.batch_sizes)
    if in_order:
        assert sequence.sorted_indices is sequence.unsorted_indices is None
    else:
        assert torch.equal(sequence.sorted_indices, clean.sorted_indices)
        assert torch.equal(sequence.unsorted_indices, clean.unsorted_indices)
    want = noisy(pad_packed_sequence(clean, batch_first=True)[0], 1.0)
    have = pad_packed_sequence(sequence, batch_first=True)[0]
    for sample, length in enumerate(lengths):
        assert torch.equal(have[sample, :length], want[sample, :length])
        assert torch.equal(last[-2, sample], have[sample, length - 1, :6])
        assert torch.equal(last[-1, sample], have[sample, 0, 6:])
    assert torch.equal(last[:-2], hidden[:-2])


@pytest.mark.parametrize("granularity", ["neuron", "channel"])
@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(4, 6), (4,)), (nn.Conv1d(4, 6, 1), (4, 3)), (nn.LSTM(4, 6, batch_first=True), (5, 4))],
)
def test_an_empty_batch(module: nn.Module, shape: tuple[int, ...], granularity: Any):
    module = add_noise(copy.deepcopy(module), "all", granularity=granularity, example=tokens(2, *shape))
    returned = module(torch.zeros(0, *shape))
    sequence = returned[0] if isinstance(returned, tuple) else returned
    assert sequence.shape[0] == 0
    sequence.sum().backward()
    assert not module.noise.sigma.grad.any()


class Reader(nn.Module):
    """Last hidden state of a GRU on packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = recurrent(nn.GRU, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][-1]


def test_draws_through_a_packed_recurrent_module():
    model, x, lengths = Reader(), tokens(3, 5, 4), torch.tensor([2, 5, 4])
    add_noise(model, "recurrent", granularity="channel")
    one_by_one = torch.stack([model(x, lengths) for _ in range(3)])
    assert not torch.isclose(one_by_one[0], one_by_one[1]).any()
    noiseprop.reset_noise(model, 0)
    with noiseprop.sampling(model, draws=3):
        assert torch.equal(model(x, lengths), one_by_one)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cell(cell: Any):
    """Check that the noisy hidden state of a cell is the input of the next step."""
    module, x = cell(4, 6), tokens(2, 4)
    returned = module(x)
    clean = returned[0] if isinstance(returned, tuple) else returned
    add_noise(module, "all", example=x)
    returned = module(x)
    assert torch.equal(returned[0] if isinstance(returned, tuple) else returned, noisy(clean, 1.0))


def test_time_first_sequences_by_batch_dim():
    """Pass the batch axis to modules that do not declare one; others keep their own axis."""
    check(nn.Linear(4, 6), tokens(5, 2, 4), channel=(6,), batch_dim=1)
    check(nn.Sequential(nn.Linear(4, 6), nn.Tanh()), tokens(5, 2, 4), channel=(6,), batch_dim=1)
    rnn = add_noise(recurrent(nn.LSTM, batch_first=True), "all", example=tokens(2, 5, 4), batch_dim=1)
    assert rnn.noise.batch_dim == 0


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def test_a_linear_after_a_time_first_module_is_not_guessed():
    with pytest.raises(InputError, match=r"^out: outputs of shape \(5, 2, 3\) come from a time-first sequence"):
        add_noise(TimeFirst(), "all", example=tokens(5, 2, 4))
    model = add_noise(TimeFirst(), "all", example=tokens(5, 2, 4), batch_dim=1)
    assert {path: tuple(n.sigma.shape) for path, n in noise_layers(model).items()} == {
        "rnn.noise": (5, 6),
        "out.noise": (5, 3),
    }
    assert model(tokens(5, 7, 4)).shape == (5, 7, 3)
    noiseprop.reset_noise(model, 3)
    separate = torch.stack([model(tokens(5, 2, 4)) for _ in range(3)])
    noiseprop.reset_noise(model, 3)
    with noiseprop.sampling(model, draws=3), pytest.warns(UserWarning, match="made by separate passes"):
        assert torch.equal(model(tokens(5, 2, 4)), separate)  # their batch is on axis 1


# Attention and transformers


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention(batch_first: bool, training: bool):
    """In eval mode without gradients the fused kernel runs, and its output is noisy all the same."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first).train(training)
    x = tokens(2, 5, 6) if batch_first else tokens(5, 2, 6)
    state = snapshot(attention)
    with torch.set_grad_enabled(training):
        clean, weights = attention(x, x, x)
        add_noise(attention, "all", example=(x, x, x))
        assert list(noise_layers(attention)) == ["noise"]  # and none on out_proj, which is never called
        assert attention.noise.sigma.shape == (5, 6)
        y, noisy_weights = attention(x, x, x)
    assert torch.equal(y, noisy(clean, 1.0, batch_dim=0 if batch_first else 1))
    assert torch.equal(noisy_weights, weights)
    remove_noise(attention)
    assert snapshot(attention) == state


def encoder(**options: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, **options), 2).eval()


def calls_of(module: nn.Module, name: str, *, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count the calls of one of torch's fused functions."""
    calls: list[Any] = []
    fused = getattr(torch, name)
    monkeypatch.setattr(torch, name, lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs))
    return calls


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masked", [False, True])
def test_transformer_encoder_leaves_the_fused_path(masked: bool, monkeypatch: pytest.MonkeyPatch):
    """Eval mode without gradients would skip the modules inside; a padding mask would make nested tensors besides."""
    model, x = encoder(), tokens(3, 5, 6)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]) if masked else None
    state = snapshot(model)
    fused = calls_of(model, "_transformer_encoder_layer_fwd", monkeypatch=monkeypatch)
    with torch.no_grad():
        untouched = model(x, src_key_padding_mask=mask)
        assert len(fused) == 2
        add_noise(model, "all", init=0.5, example={"src": x, "src_key_padding_mask": mask}, key=3)
        y = model(x, src_key_padding_mask=mask)
        assert len(fused) == 2
        with noiseprop.sampling(model, "off"):
            off = model(x, src_key_padding_mask=mask)
    assert len(noise_layers(model)) == 6
    kept = ~mask if mask is not None else torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(off[kept], untouched[kept])  # the same up to rounding, by another path
    assert not torch.isclose(y, off).any(dim=2).all()
    noiseprop.reset_noise(model, 3)
    torch.testing.assert_close(model.train()(x, src_key_padding_mask=mask)[kept], y[kept])  # the same noise in training
    remove_noise(model.eval())
    assert snapshot(model) == state
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=mask), untouched)
    assert len(fused) == 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_noise_in_one_layer_leaves_the_other_its_fused_path(monkeypatch: pytest.MonkeyPatch):
    model, x = encoder(), tokens(3, 5, 6)
    add_noise(model, "layers.1.linear2", example=x)
    fused = calls_of(model, "_transformer_encoder_layer_fwd", monkeypatch=monkeypatch)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
    assert len(fused) == 2  # layer 0, twice


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_rejected_with_a_remedy():
    model, x = encoder(), tokens(3, 5, 6)
    add_noise(model.layers[0], "linear", example=x)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    with (
        torch.no_grad(),
        pytest.raises(InputError, match=r"linear1: nested tensors .* nn.TransformerEncoder as a whole"),
    ):
        model(x, src_key_padding_mask=mask)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_whole_transformer_knows_its_batch_axis(batch_first: bool):
    torch.manual_seed(0)
    model = nn.Transformer(6, 2, 1, 1, 8, batch_first=batch_first)
    example = (tokens(2, 5, 6), tokens(2, 4, 6)) if batch_first else (tokens(5, 2, 6), tokens(4, 2, 6))
    state = snapshot(model)
    add_noise(model, "all", example=example)
    shapes = {path.removesuffix(".noise"): tuple(n.sigma.shape) for path, n in noise_layers(model).items()}
    assert shapes == {
        "encoder.layers.0.self_attn": (5, 6),
        "encoder.layers.0.linear1": (5, 8),
        "encoder.layers.0.linear2": (5, 6),
        "decoder.layers.0.self_attn": (4, 6),
        "decoder.layers.0.multihead_attn": (4, 6),
        "decoder.layers.0.linear1": (4, 8),
        "decoder.layers.0.linear2": (4, 6),
    }
    more = [torch.cat([x] * 3, dim=0 if batch_first else 1) for x in example]
    assert model.eval()(*more).shape[0 if batch_first else 1] == 6
    remove_noise(model.train())
    assert snapshot(model) == state


# One sigma a channel


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x)[0]


CHANNELS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...], int]] = {  # two sizes, and the channels' axis
    "Linear": (nn.Linear(4, 5), (3, 4), (7, 4), -1),
    "Linear, more axes": (nn.Linear(4, 5), (2, 3, 4), (6, 2, 4), -1),
    "Conv1d": (nn.Conv1d(3, 4, 3), (3, 7), (3, 5), 1),
    "Conv2d": (nn.Conv2d(3, 4, 3), (3, 6, 6), (3, 5, 9), 1),
    "Conv3d": (nn.Conv3d(3, 4, 3), (3, 4, 5, 4), (3, 5, 3, 6), 1),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 2, 2), (3, 4, 3), 1),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 10, 10), (4, 6, 5), 1),
    "BatchNorm2d": (nn.BatchNorm2d(4), (4, 4, 4), (4, 3, 5), 1),
    "GroupNorm": (nn.GroupNorm(2, 4), (4, 4, 4), (4, 3, 5), 1),
    "LayerNorm": (nn.LayerNorm(4), (4, 4), (9, 4), -1),
    "Embedding": (nn.Embedding(9, 4), (4,), (7,), -1),
    "LSTM": (nn.LSTM(4, 5, batch_first=True, bidirectional=True), (10, 4), (3, 4), -1),
    "GRU": (nn.GRU(4, 5, batch_first=True), (5, 4), (3, 4), -1),
    "MultiheadAttention": (SelfAttention(), (6, 6), (3, 6), -1),
    "TransformerEncoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True), 2),
        (6, 6),
        (3, 6),
        -1,
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", CHANNELS)
def test_channels_have_their_own_sigma_at_any_input_size(kind: str):
    plain, *sizes, axis = CHANNELS[kind]
    model = add_noise(copy.deepcopy(plain).eval(), "", granularity="channel", example=inputs(kind, sizes[0]))
    (noise,) = noise_layers(model).values()
    levels = torch.arange(1.0, noise.sigma.numel() + 1)
    noise.sigma.data = levels.view_as(noise.sigma)
    for passes, size in enumerate(sizes):
        x = inputs(kind, size)
        clean, y = (first(net(x)) for net in (copy.deepcopy(plain).eval(), model))
        assert clean.shape[axis] == len(levels)
        sigma = levels.view(-1, *[1] * (0 if axis == -1 else clean.dim() - 2)).expand(clean.shape[1:])
        assert torch.equal(y, noisy(clean, sigma, passes=passes))
        slope = tokens(*clean.shape)
        (gradient,) = torch.autograd.grad((y * slope).sum(), noise.sigma)
        eps = noisy(torch.zeros_like(clean), 1.0, passes=passes)
        wanted = (eps * slope).movedim(axis, 0).flatten(1).sum(1)  # Eq. 3, over samples and positions
        torch.testing.assert_close(gradient.flatten(), wanted, rtol=1e-4, atol=1e-5)


def inputs(kind: str, size: tuple[int, ...]) -> Tensor:
    return torch.arange(3 * size[0]).view(3, *size) % 9 if kind == "Embedding" else tokens(3, *size)


def first(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned


# What modules may return, and how often they are called


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, b],
        lambda a, b: {"a": a, "b": b},
        lambda a, b: OrderedDict(b=a, a=b),
        lambda a, b: Pair(a, b),
        lambda a, b: (None, {"deep": [a, b]}),
    ],
)
def test_tuples_and_dicts(wrap: Any):
    """Check that the first tensor gets the noise, and that the rest and the type stay."""

    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x, 2 * x)

    x = tokens(3, 4)
    module, twin = Returns(), Returns()
    state = snapshot(module)
    add_noise(module, "", example=x)
    y = module(x)
    assert type(y) is type(twin(x))
    leaves = torch.utils._pytree.tree_leaves(y)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    assert torch.equal(tensors[0], noisy(x, 1.0))
    assert torch.equal(tensors[1], 2 * x)
    remove_noise(module)
    assert snapshot(module) == state


def test_a_module_called_twice_has_other_noise_each_time():
    """Check that the call is part of the key, and that sigma gets the gradients of both calls."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)
            nn.init.eye_(self.fc.weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.fc(x), self.fc(2 * x)], 1)

    x = tokens(3, 4)
    net = add_noise(Twice(), "linear", example=x)
    y = net(x)
    assert torch.equal(y, torch.cat([noisy(x, 1.0), noisy(2 * x, 1.0, call=1)], 1))
    y.sum().backward()
    eps = sum(noisy(torch.zeros(3, 4), 1.0, call=call) for call in (0, 1))
    torch.testing.assert_close(net.fc.noise.sigma.grad, eps.sum(0))


def test_tied_weights():
    """Check that two modules with a shared weight have independent noise, and that the weight stays one parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    net, x = Tied(), torch.tensor([[1, 2], [0, 8]])
    state = snapshot(net)
    add_noise(net, ["embed", "head"], example=x)
    assert net.head.weight is net.embed.weight
    hidden = noisy(nn.functional.embedding(x, net.embed.weight), 1.0)
    assert torch.equal(net(x), noisy(hidden @ net.embed.weight.T, 1.0, layer=1))
    remove_noise(net)
    assert snapshot(net) == state


def test_one_module_under_two_names():
    """It has one noise, listed under its first name and saved under both, as its weight is."""
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = net

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["b"](self.parts["a"](x))

    for where in ("linear", "parts.b.0", ["parts.a", "parts.b.0"]):
        model = add_noise(Net(), where, example=tokens(2, 4))
        assert list(noise_layers(model)) == ["parts.a.noise"]
        names = [name for name in model.state_dict() if name.endswith("sigma")]
        assert names == ["parts.a.noise.sigma", "parts.b.0.noise.sigma"]
        remove_noise(model)


def test_frozen_layers():
    """Frozen weights get no gradient, the sigma on them does."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    add_noise(net, "linear", example=tokens(2, 4))
    net(tokens(3, 4)).sum().backward()
    assert net[0].weight.grad is None
    assert net[0].noise.sigma.grad is not None
    assert net[0].noise.sigma.grad.abs().sum() > 0


def test_wildcards_mean_no_module_that_computes_a_weight():
    net = nn.Sequential(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU()))
    assert list(noise_layers(add_noise(net, "0.*", example=torch.zeros(2, 4)))) == ["0.0.noise", "0.1.noise"]
    with pytest.raises(InputError, match=r"^0.0.parametrizations.weight is never called as a module"):
        add_noise(net, "0.0.parametrizations.weight", example=torch.zeros(2, 4))


def test_parametrized_weights():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    check(net, tokens(2, 4), channel=(5,))
