"""Noise that can be silenced, frozen, repeated and drawn K times through whatever module a user passes.

The networks differ from those of the other tests: tiny Hugging Face models, a network with a train() of its own,
networks whose stem or head was swapped after `add_noise`, and recurrent cells.
"""

import copy
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from noiseprop import InputError, NeuronNoise, add_noise, noise_layers, reset_noise, sampling, sigmas
from noiseprop.data import Dataset, Split
from noiseprop.errors import NoisepropWarning
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.settings import Settings
from noiseprop.noise.stream import noise_kept
from noiseprop.training import Recipe, train

K = 3
PIXELS = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 20, (5, 6), generator=torch.Generator().manual_seed(2))
SERIES = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(3))


class FrozenNormNet(nn.Module):
    """Convolutions with a batch norm that train() leaves in eval mode, and a noisy classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.body, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def train(self, mode: bool = True) -> "FrozenNormNet":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))


class CellNet(nn.Module):
    """A recurrent cell that is called once for each of four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Wrapper(nn.Module):
    """Module that goes past the hooks of the model inside it, as PEFT does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.forward(*args, **kwargs)


def make_vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def make_bert() -> nn.Module:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def make_resnet() -> nn.Module:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config).eval()


def swap_stem_of_vit() -> tuple[nn.Module, Tensor]:
    model = add_noise(make_vit(), "linear", init=0.3, granularity="channel", example=PIXELS)
    model.vit.embeddings.patch_embeddings.projection = nn.Conv2d(3, 8, 4, stride=4)
    return model, PIXELS


def swap_noisy_stem() -> tuple[nn.Module, Tensor]:
    """Layer 0 is gone, and the new stem takes images with one channel."""
    model = add_noise(FrozenNormNet(), "all", init=0.3, granularity="channel").train()
    model.stem = nn.Conv2d(1, 4, 3, stride=2)
    return model, PIXELS[:, :1]


def swap_head_of_bert() -> tuple[nn.Module, Tensor]:
    model = add_noise(make_bert(), "linear", init=0.3, granularity="channel", example=TOKENS)
    model.classifier = nn.Linear(8, 4)
    return model, TOKENS


def swap_noisy_head_of_cells() -> tuple[nn.Module, Tensor]:
    model = add_noise(CellNet(), "all", init=0.3, example=SERIES)
    model.head = add_noise(nn.Linear(7, 5), [""], init=0.3, example=torch.zeros(1, 7), key=9)
    return model, SERIES


def slice_a_stack() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    return add_noise(model, "linear", init=0.3, example=torch.zeros(2, 4, 6))[2:], torch.ones(5, 4, 8)


def take_the_classifier() -> tuple[nn.Module, Tensor]:
    model = add_noise(FrozenNormNet(), "all", init=0.3, granularity="channel")
    return model.head, torch.ones(5, 6)


def take_the_encoder_of_bert() -> tuple[nn.Module, Tensor]:
    model = add_noise(make_bert(), "linear", init=0.3, granularity="channel", example=TOKENS)
    return model.bert.encoder.layer[1], torch.randn(5, 6, 8)


def drop_the_classifier_of_a_resnet() -> tuple[nn.Module, Tensor]:
    model = add_noise(make_resnet(), "conv", init=0.3, granularity="channel", example=PIXELS)
    return nn.Sequential(model.resnet.embedder, *list(model.resnet.encoder.stages)[:-1]), PIXELS


def wrap_cells() -> tuple[nn.Module, Tensor]:
    return Wrapper(add_noise(CellNet(), "all", init=0.3, example=SERIES)), SERIES


def wrap_vit() -> tuple[nn.Module, Tensor]:
    return Wrapper(add_noise(make_vit(), "linear", init=0.3, granularity="channel", example=PIXELS)), PIXELS


def wrap_frozen_norm() -> tuple[nn.Module, Tensor]:
    model = Wrapper(Wrapper(add_noise(FrozenNormNet(), "conv", init=0.3, granularity="channel")))
    model.train()
    return model, PIXELS


def wrap_a_swapped_stem() -> tuple[nn.Module, Tensor]:
    model, x = swap_noisy_stem()
    return nn.Sequential(nn.Identity(), Wrapper(model)), x


SITUATIONS: list[Callable[[], tuple[nn.Module, Tensor]]] = [
    swap_stem_of_vit,
    swap_noisy_stem,
    swap_head_of_bert,
    swap_noisy_head_of_cells,
    slice_a_stack,
    take_the_classifier,
    take_the_encoder_of_bert,
    drop_the_classifier_of_a_resnet,
    wrap_cells,
    wrap_vit,
    wrap_frozen_norm,
    wrap_a_swapped_stem,
]
each_situation = pytest.mark.parametrize("make", SITUATIONS)


def compute_output(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Return the logits of a model, or its first output."""
    output = model(*args, **kwargs)
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def build(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make()


def silence(model: nn.Module) -> nn.Module:
    """Return a copy whose sigmas are 0."""
    quiet = copy.deepcopy(model)
    for layer in noise_layers(quiet).values():
        layer.sigma.data.zero_()
    return quiet


@pytest.fixture(autouse=True)
def _ignore_full_cost():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*full cost of every draw", category=UserWarning)
        yield


# Modes, through swapped parts, slices and wrappers


@each_situation
@torch.no_grad()
def test_off_is_silent_and_leaves_fresh_noise_in_place(make):
    model, x = build(make)
    clean = compute_output(silence(model), x)
    with sampling(model, "off"):
        torch.testing.assert_close(compute_output(model, x), clean)
        assert torch.equal(compute_output(model, x), compute_output(model, x))
    one, other = compute_output(model, x), compute_output(model, x)
    assert (one - other).abs().mean() > 1e-3
    assert (one - clean).abs().mean() > 1e-3


@each_situation
@torch.no_grad()
def test_frozen_noise_is_equal_between_passes_and_blocks(make):
    model, x = build(make)
    outputs = []
    for key in (5, 6, 5):
        with sampling(model, "frozen", key=key):
            outputs.append(compute_output(model, x))
            assert torch.equal(compute_output(model, x), outputs[-1])
    assert torch.equal(outputs[0], outputs[2])
    assert (outputs[0] - outputs[1]).abs().mean() > 1e-3
    assert (outputs[0] - compute_output(silence(model), x)).abs().mean() > 1e-3


@each_situation
@torch.no_grad()
def test_draws_are_distinct_and_equal_separate_passes(make):
    model, x = build(make)
    reset_noise(model, 4)
    separate = torch.stack([compute_output(model, x) for _ in range(K)])
    after = compute_output(model, x)
    reset_noise(model, 4)
    with sampling(model, draws=K):
        together = compute_output(model, x)
    torch.testing.assert_close(together, separate)
    torch.testing.assert_close(compute_output(model, x), after)
    for a in range(K):
        for b in range(a):
            assert (together[a] - together[b]).abs().mean() > 1e-3


@each_situation
@torch.no_grad()
def test_frozen_draws_repeat_and_the_first_is_the_frozen_pass(make):
    model, x = build(make)
    with sampling(model, "frozen", key=8):
        single = compute_output(model, x)
    with sampling(model, "frozen", key=8, draws=K):
        first, second = compute_output(model, x), compute_output(model, x)
    assert torch.equal(first, second)
    torch.testing.assert_close(first[0], single)
    assert all((first[a] - first[b]).abs().mean() > 1e-3 for a in range(K) for b in range(a))


@each_situation
@torch.no_grad()
def test_a_reset_restarts_every_layer(make):
    model, x = build(make)
    outputs = []
    for key in (1, 2, 1):
        reset_noise(model, key)
        outputs.append(compute_output(model, x))
        compute_output(model, x)
    assert torch.equal(outputs[0], outputs[2])
    assert (outputs[0] - outputs[1]).abs().mean() > 1e-3
    with noise_kept(model):
        kept = compute_output(model, x)
    assert torch.equal(compute_output(model, x), kept)


@each_situation
@torch.no_grad()
def test_the_state_dict_holds_the_position_of_every_layer(make):
    model, x = build(make)
    layers = noise_layers(model)
    assert layers
    assert {f"{path}.key".lstrip(".") for path in layers} == {
        name for name in model.state_dict() if name.split(".")[-1] == "key" and "noise" in name
    }
    reset_noise(model, 7)
    compute_output(model, x)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    expected = [compute_output(model, x) for _ in range(2)]
    fresh, _ = build(make)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored))
    assert all(torch.equal(compute_output(fresh, x), output) for output in expected)


@each_situation
@torch.no_grad()
def test_copies_and_pickles_of_a_whole_model_repeat_it(make):
    model, x = build(make)
    compute_output(model, x)
    with sampling(model, "frozen", key=3):
        inside = copy.deepcopy(model)
    copies = [inside, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for _ in range(2):
        expected = compute_output(model, x)
        for twin in copies:
            assert torch.equal(compute_output(twin, x), expected)


class Steps(nn.Module):
    """One linear layer, called four times, whose outputs are its noise."""

    def __init__(self, *, through_forward: bool) -> None:
        super().__init__()
        cell = nn.Linear(6, 7, bias=False)
        nn.init.zeros_(cell.weight)
        self.cell = add_noise(cell, [""], example=torch.zeros(1, 6)) if through_forward else cell

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.cell(step) for step in x.unbind(1)], 1)


@pytest.mark.parametrize("how", ["wrapper", "nested", "sequential", "plain"])
@torch.no_grad()
def test_each_call_of_a_recurrent_cell_has_noise_of_its_own(how):
    steps = add_noise(Steps(through_forward=False), "linear", example=SERIES)
    models = {
        "wrapper": Wrapper(steps),
        "nested": Wrapper(Wrapper(steps)),
        "sequential": nn.Sequential(*list(nn.Sequential(steps, nn.Linear(7, 2)).children())[:-1]),
        "plain": steps,
    }
    model = models[how]
    for options in ({}, {"draws": K}, {"mode": "frozen", "key": 2}, {"mode": "frozen", "key": 2, "draws": K}):
        with sampling(model, **options):
            noise = model(SERIES)
        calls = noise.movedim(2 if "draws" in options else 1, 0).flatten(1)  # (4, all other neurons)
        correlation = torch.corrcoef(calls)
        assert (correlation - torch.eye(4)).abs().max() < 0.6
        assert calls.std() == pytest.approx(1, abs=0.25)
        if "draws" in options:
            assert len(noise.flatten(1).unique(dim=0)) == K


# Copies of a layer within one model


def stack_encoder_layers() -> tuple[nn.Module, Tensor]:
    """Noise in a layer that nn.TransformerEncoder copies."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
    add_noise(layer, "linear", granularity="channel", example=SERIES)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), SERIES


def stack_bare_noise() -> tuple[nn.Module, Tensor]:
    block = nn.Sequential(nn.Linear(6, 6), NeuronNoise(6))
    return nn.Sequential(*(copy.deepcopy(block) for _ in range(4))), SERIES.flatten(0, 1)


def stack_vit_layers() -> tuple[nn.Module, Tensor]:
    """A Hugging Face model whose layers are copies of one with noise."""
    model = make_vit()
    layer = add_noise(model.vit.layers[0], "linear", granularity="channel", example=torch.zeros(2, 5, 8))
    for number in range(2):
        model.vit.layers[number] = copy.deepcopy(layer)
    return model, PIXELS


class Committee(nn.Module):
    """Copies of one network with a train() of its own, averaged."""

    def __init__(self) -> None:
        super().__init__()
        member = add_noise(FrozenNormNet(), "all", granularity="channel")
        self.members = nn.ModuleList(copy.deepcopy(member) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


def unite_copies() -> tuple[nn.Module, Tensor]:
    return Committee(), PIXELS


STACKS = [stack_encoder_layers, stack_bare_noise, stack_vit_layers, unite_copies]


def record_noise(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the standard normal numbers that each noise layer adds in one pass."""
    noise, handles = [], []
    for layer in noise_layers(model).values():
        handles.append(
            layer.register_forward_hook(lambda layer, args, y: noise.append(((y - args[0]) / layer.sigma).detach()))
        )
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return noise


def find_largest_correlation(noise: list[Tensor]) -> float:
    pairs = [(a.flatten(), b.flatten()) for i, a in enumerate(noise) for b in noise[:i] if a.shape == b.shape]
    assert pairs
    return max(float(torch.corrcoef(torch.stack(pair))[0, 1].abs()) for pair in pairs)


@pytest.mark.parametrize("look", ["sampling", "sigmas", "reset"])
@pytest.mark.parametrize("make", STACKS)
def test_copies_of_a_layer_become_independent_with_one_warning(make, look):
    model, x = build(make)
    twin = copy.deepcopy(model)
    assert find_largest_correlation(record_noise(model, x)) > 0.99
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            if look == "sampling":
                with sampling(model):
                    pass
            elif look == "sigmas":
                sigmas(model)
            else:
                reset_noise(model, 5)
        sigmas(model)
    (warning,) = [entry for entry in seen if issubclass(entry.category, NoisepropWarning)]
    assert "copies of a noise layer drew the same noise" in str(warning.message)
    assert find_largest_correlation(record_noise(model, x)) < 0.5
    assert len({(layer.seed, layer.number) for layer in noise_layers(model).values()}) == len(noise_layers(model))
    repeated = copy.deepcopy(model)
    assert all(map(torch.equal, record_noise(repeated, x), record_noise(model, x)))
    with pytest.warns(NoisepropWarning, match="copies of a noise layer"):
        reset_noise(twin, 5)
    reset_noise(model, 5)
    assert all(map(torch.equal, record_noise(twin, x), record_noise(model, x)))  # copies get their numbers in order


def make_images(count: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Dataset("made up", pixels, torch.arange(count) % 3, ("a", "b", "c"))


class Images2Series(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(1)[:, :24].unflatten(1, (4, 6))).mean(1))


class LogitsOnly(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def make_classifiers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Images2Series(stack_encoder_layers()[0]), LogitsOnly(stack_vit_layers()[0]), Committee()]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("look", ["train", "evaluate"])
def test_training_and_evaluation_separate_copies_with_one_warning(number, look):
    model = make_classifiers()[number]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if look == "train":
            split = Split(make_images(12, 0), make_images(6, 1), make_images(6, 2), seed=0, ratio=(2, 1, 1))
            train(model, split, Recipe(epochs=1, batch_size=6))
        else:
            settings = Settings(
                attack_images=4, attack_draws=(1,), eot_images=2, vote_draws=2, vote_images=4, trust_images=2
            )
            evaluate(model, make_images(12, 0), settings=settings, surrogate=FrozenNormNet().eval())
    assert sum("copies of a noise layer" in str(entry.message) for entry in seen) == 1
    assert find_largest_correlation(record_noise(model, PIXELS)) < 0.5


# Several processes and models without a process group


def _send_noise(pipe: Any, model: nn.Module, x: Tensor, seed: int | None) -> None:
    torch.set_num_threads(1)
    if seed is not None:
        torch.manual_seed(seed)  # as a DataLoader does in its workers
        reset_noise(model, None)
    with torch.no_grad():
        pipe.send(compute_output(model, x).numpy())


@pytest.mark.parametrize("make", [swap_stem_of_vit, wrap_frozen_norm, swap_noisy_head_of_cells])
def test_forked_workers_repeat_the_noise_until_they_draw_their_own_seeds(make):
    model, x = build(make)
    context = multiprocessing.get_context("fork")

    def collect(seeds: tuple[int | None, ...]) -> list[Tensor]:
        outputs = []
        for seed in seeds:
            here, there = context.Pipe()
            worker = context.Process(target=_send_noise, args=(there, model, x, seed))
            worker.start()
            outputs.append(torch.from_numpy(here.recv()))
            worker.join(30)
            assert worker.exitcode == 0
        return outputs

    same, own = collect((None, None)), collect((1, 2, 1))
    assert torch.equal(*same)
    assert torch.equal(own[0], own[2])
    assert (own[0] - own[1]).abs().mean() > 1e-3
    assert (own[0] - same[0]).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("make", "x"), [(make_vit, PIXELS), (make_bert, TOKENS), (FrozenNormNet, PIXELS), (CellNet, SERIES)]
)
@torch.no_grad()
def test_two_models_repeat_each_other_unless_their_keys_are_drawn(make, x):
    def build_pair(key: int | None) -> list[nn.Module]:
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(make())
        torch.manual_seed(1)
        return [add_noise(model, "all", granularity="channel", example=x, key=key) for model in models]

    same, own = build_pair(0), build_pair(None)
    assert torch.equal(*(compute_output(model, x) for model in same))
    one, other = (compute_output(model, x) for model in own)
    assert (one - other).abs().mean() > 1e-3
    for model in same:
        reset_noise(model, None)
    one, other = (compute_output(model, x) for model in same)
    assert (one - other).abs().mean() > 1e-3


# Inputs beside the batch, under several draws


class Prototypes(nn.Module):
    """Similarity of each image to each row of a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 4)

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        return self.embed(x) @ prototypes.T


class Gate(nn.Module):
    """Weights of the columns, with as many rows as there are columns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        return self.head(self.embed(x).relu()) * (1 + prototypes.mean(1)[:, None].mean())


class FrozenNormPrototypes(FrozenNormNet):
    """Images compared with rows of a codebook, by attention."""

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        hidden = self.norm(self.stem(x)).relu().mean((2, 3))  # (B, 4)
        return (hidden @ prototypes.T).sigmoid() @ prototypes


class Labelled(nn.Module):
    """A second argument that has a row for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        return self.head(self.embed(x) + prototypes)


class VitPrototypes(nn.Module):
    """A Hugging Face model as encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_vit()

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        return self.model.vit(x).last_hidden_state[:, 0, :4] @ prototypes.T


@pytest.mark.parametrize("as_keyword", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("make", [Prototypes, Gate, FrozenNormPrototypes, Labelled, VitPrototypes])
@torch.no_grad()
def test_a_second_argument_with_as_many_rows_as_the_batch(make, rows, as_keyword):
    torch.manual_seed(0)
    model = make().eval()
    x = (PIXELS if make in (FrozenNormPrototypes, VitPrototypes) else SERIES[:, 0])[:rows]
    prototypes = torch.randn(rows, 4)
    args, kwargs = ((x,), {"prototypes": prototypes}) if as_keyword else ((x, prototypes), {})
    add_noise(model, "all", init=0.3, granularity="channel", example=(x, prototypes))
    reset_noise(model, 3)
    separate = torch.stack([model(*args, **kwargs) for _ in range(K)])
    reset_noise(model, 3)
    with sampling(model, draws=K):
        together = [model(*args, **kwargs) for _ in range(2)]
    assert together[0].shape == separate.shape
    torch.testing.assert_close(together[0], separate)
    assert not torch.isclose(together[0], together[1]).all()
    if rows == 5:
        assert together[0].shape[:2] == (K, 5)


class BatchNormalised(nn.Module):
    """Subtracts the mean of the batch, so that samples depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        hidden = self.embed(x)
        return self.head(hidden - hidden.mean(0)) + context.mean()


class SecondIsTheBatch(nn.Module):
    """The first argument is no batch, but has as many rows by chance, or another number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 4)

    def forward(self, prototypes: Tensor, x: Tensor) -> Tensor:
        return self.embed(x) @ prototypes.T


class VitOfPairs(nn.Module):
    """Compares all images with one another."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_vit()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        hidden = self.model.vit(x).last_hidden_state[:, 0]
        return hidden @ hidden.T * scale


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (BatchNormalised, (SERIES[:, 0], torch.ones(5, 2))),
        (SecondIsTheBatch, (torch.ones(5, 4).cumsum(0), SERIES[:, 0])),
        (SecondIsTheBatch, (torch.ones(3, 4).cumsum(0), SERIES[:, 0])),
        (SecondIsTheBatch, (torch.ones(1, 4), SERIES[:1, 0])),
        (VitOfPairs, (PIXELS, torch.arange(5.0))),
        (VitOfPairs, (PIXELS[:2], torch.arange(2.0))),
    ],
)
@torch.no_grad()
def test_where_the_batch_cannot_be_told_apart_the_draws_are_separate_passes(make, args):
    torch.manual_seed(0)
    model = add_noise(make().eval(), "linear", init=0.3, granularity="channel", example=args)
    reset_noise(model, 3)
    separate = torch.stack([model(*args) for _ in range(K)])
    after = model(*args)
    reset_noise(model, 3)
    with sampling(model, draws=K):
        together = model(*args)
    torch.testing.assert_close(together, separate)
    torch.testing.assert_close(model(*args), after)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (make_vit, {"pixel_values": PIXELS}),
        (make_bert, {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}),
        (make_resnet, {"pixel_values": PIXELS}),
    ],
)
def test_a_loss_that_is_a_mean_over_the_batch_is_named_at_the_first_call(make, inputs):
    torch.manual_seed(0)
    labels = torch.arange(5) % 3
    model = add_noise(make(), "all", init=0.3, granularity="channel", example=inputs)
    reset_noise(model, 3)
    with sampling(model, draws=K):
        for _ in range(2):
            with pytest.raises(InputError, match=r"a loss that is a mean over the batch.*without labels"):
                model(**inputs, labels=labels)
        logits = model(**inputs).logits
    reset_noise(model, 3)
    separate = torch.stack([model(**inputs).logits for _ in range(K)])
    torch.testing.assert_close(logits, separate)
    losses = [functional.cross_entropy(draw, labels) for draw in logits]
    reset_noise(model, 3)
    torch.testing.assert_close(losses, [model(**inputs, labels=labels).loss for _ in range(K)])


# Features of torch, through parts and wrappers


@pytest.mark.parametrize("make", [swap_noisy_stem, wrap_frozen_norm, slice_a_stack])
def test_checkpointed_parts_repeat_their_noise(make):
    model, x = build(make)
    gradients = []
    for is_checkpointed in (False, True):
        reset_noise(model, 3)
        model.zero_grad()
        output = checkpoint(model, x, use_reentrant=False) if is_checkpointed else model(x)
        output.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 2
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("make", [swap_noisy_stem, wrap_vit, slice_a_stack])
@torch.no_grad()
def test_a_compiled_module_makes_the_same_draws(make):
    model, x = build(make)
    reset_noise(model, 3)
    with sampling(model, draws=K):
        expected = compute_output(model, x)
    compiled = torch.compile(model, backend="aot_eager")
    reset_noise(model, 3)
    with sampling(compiled, draws=K):
        torch.testing.assert_close(compute_output(compiled, x), expected)
    with sampling(compiled, "frozen", key=4):
        frozen = [compute_output(compiled, x) for _ in range(2)]
    assert torch.equal(*frozen)
    with sampling(model, "frozen", key=4):
        torch.testing.assert_close(compute_output(model, x), frozen[0])
