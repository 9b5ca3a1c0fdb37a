"""Check noisy models with other features of torch: compiled, copied, checkpointed, distributed, exported."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.noise.oracle import noisy, snapshot
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import noiseprop
from noiseprop import InputError, add_noise, before, noise_layers, remove_noise, sampling, save_noise

X = torch.linspace(-1, 1, 20).view(5, 4)


class Net(nn.Module):
    """Two halves, the first of which can be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Dropout(0.3))
        self.last = nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.last(self.first(x))
        return self.last(checkpoint(self.first, x, use_reentrant=self.reentrant))


@pytest.fixture
def net() -> Net:
    return add_noise(Net().eval(), "linear", init=0.5, example=X)


# Compiled


@pytest.fixture
def dynamo() -> Any:
    import torch._dynamo as dynamo

    torch.compiler.reset()
    dynamo.utils.counters.clear()
    yield dynamo
    torch.compiler.reset()


compiling = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:`isinstance.treespec:FutureWarning", "ignore:Dynamo:UserWarning"
)


@compiling
@pytest.mark.parametrize("granularity", ["neuron", "channel"])
def test_compiled_once_for_all_passes(dynamo: Any, granularity: Any):
    """Check that each pass has new noise without a new compilation, because the pass number is a tensor."""
    net = add_noise(Net().eval(), "linear", granularity=granularity, example=X)
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    outputs, graphs = [], []
    for _ in range(4):
        y, wanted = compiled(X), eager(X)
        torch.testing.assert_close(y, wanted)
        y.square().sum().backward()
        wanted.square().sum().backward()
        outputs.append(y)
        graphs.append(dynamo.utils.counters["stats"]["unique_graphs"])
    assert not torch.isclose(outputs[0], outputs[1]).any()
    for p, q in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert graphs == [1] * 4
    assert not dynamo.utils.counters["recompiles"]
    assert not dynamo.utils.counters["graph_break"]


@compiling
@pytest.mark.parametrize("twin_first", [True, False])
def test_a_compiled_model_never_runs_the_graph_of_its_noise_free_twin(dynamo: Any, twin_first: bool, net: Net):
    """torch.compile compares no hooks: without a difference that it sees, whichever came first would serve both."""
    twin, eager = Net().eval(), copy.deepcopy(net)
    plain, compiled = (torch.compile(model, backend="eager") for model in (twin, net))
    if twin_first:
        assert torch.equal(plain(X), twin(X))
    for _ in range(2):
        assert torch.equal(compiled(X), eager(X))
        assert torch.equal(plain(X), twin(X))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 2


@compiling
@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 3), lambda: nn.Sequential(nn.Linear(4, 3)), Net])
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x: model(x)])
def test_no_twins_graph_is_run_where_the_whole_model_is_noisy_or_called_by_what_is_compiled(
    dynamo: Any, build: Any, wrap: Any
):
    twin = build().eval()
    net = add_noise(copy.deepcopy(twin), "" if isinstance(twin, nn.Linear) else "linear", example=X)
    eager = copy.deepcopy(net)
    plain, compiled = (torch.compile(wrap(model), backend="eager") for model in (twin, net))
    for _ in range(2):
        assert torch.equal(plain(X), twin(X))
        assert torch.equal(compiled(X), eager(X))


@compiling
def test_noise_added_to_and_removed_from_what_is_compiled(dynamo: Any):
    net = Net().eval()
    clean = net(X)
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled(X), clean)
    add_noise(net, "last", example=X)
    assert torch.equal(compiled(X), noisy(clean, 1.0))
    assert torch.equal(compiled(X), noisy(clean, 1.0, passes=1))
    remove_noise(net)
    assert torch.equal(compiled(X), clean)
    add_noise(net, before("last"), example=X)
    hidden = noisy(net.first(X), 1.0)
    assert torch.equal(compiled(X), hidden @ net.last.weight.T + net.last.bias)


@compiling
@pytest.mark.slow
def test_noise_that_waits_for_a_batch_does_so_when_compiled(dynamo: Any):
    net = Net().eval()
    clean = net(X)
    torch.compile(net, backend="eager")(X)
    add_noise(net, "last")
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled(X), noisy(clean, 1.0))
    assert torch.equal(compiled(X), noisy(clean, 1.0, passes=1))


@compiling
def test_sampling_of_a_compiled_model(dynamo: Any, net: Net):
    eager, compiled = copy.deepcopy(net), torch.compile(net, backend="eager")
    compiled(X), eager(X)
    for options in ({"mode": "off"}, {"mode": "frozen", "key": 3}, {"mode": "fresh"}):
        with sampling(net, **options), sampling(eager, **options):
            torch.testing.assert_close(compiled(X), eager(X))
    torch.testing.assert_close(compiled(X), eager(X))


@compiling
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_inductor_compiles_recurrent_and_attention_outputs(dynamo: Any):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            sequence, hidden = self.rnn(x)
            return self.attention(sequence, sequence, sequence)[0] + hidden[-1][:, None]

    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 60).view(5, 3, 4)
    net = add_noise(Reader().eval(), "all", example=x)
    eager, compiled = copy.deepcopy(net), torch.compile(net)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-4, atol=1e-5)


# Called in other ways


def test_functional_call(net: Net):
    eager = copy.deepcopy(net)
    values = {name: 2 * p.detach() for name, p in net.named_parameters()}
    y = functional_call(net, values, (X,))
    for name, p in eager.named_parameters():
        p.data.copy_(values[name])
    assert torch.equal(y, eager(X))
    assert net.first[0].noise.key.tolist() == [0, 1, 0, 0, 0]


def test_functional_call_with_buffers_leaves_the_models_own(net: Net):
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    y = functional_call(net, dict(net.named_parameters()) | buffers, (X,))
    assert buffers["first.0.noise.key"].tolist() == [0, 1, 0, 0, 0]
    assert net.first[0].noise.key.tolist() == [0, 0, 0, 0, 0]
    assert torch.equal(net(X), y)


def test_autocast(net: Net):
    """Check that noise is added in the output's precision; sigma and its gradient stay float32."""
    with torch.autocast("cpu", torch.bfloat16):
        y = net(X)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    for noise in noise_layers(net).values():
        assert noise.sigma.dtype == noise.sigma.grad.dtype == torch.float32
        assert noise.sigma.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("dtype", "sigma"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_models_of_other_precision(dtype: torch.dtype, sigma: torch.dtype):
    x = X.to(dtype)
    net = add_noise(Net().to(dtype).eval(), "linear", example=x)
    assert {noise.sigma.dtype for noise in noise_layers(net).values()} == {sigma}
    y = net(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert net.last.noise.sigma.grad.dtype == sigma


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_checkpointed_blocks_have_the_gradients_of_others(reentrant: bool):
    """Over two passes that are only then differentiated."""
    gradients = []
    for mode in (None, reentrant):
        net = add_noise(Net(mode), "linear", example=X)
        net.first[3].p = 0.0
        x = X.clone().requires_grad_()
        torch.manual_seed(1)
        outputs = [net(x), net(2 * x)]
        assert not torch.isclose(outputs[0], outputs[1]).all()
        for y in outputs:
            y.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in net.parameters())])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_checkpointed_blocks_see_their_noise_again_beside_dropout(reentrant: bool):
    net, seen = add_noise(Net(reentrant), "linear", example=X), []
    net.first[2].register_forward_hook(lambda m, args, y: seen.append(y.detach()))
    for _ in range(2):
        net(X.clone().requires_grad_()).sum().backward()
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


# Copied


def test_deepcopy(net: Net):
    net(X)
    twin = copy.deepcopy(net)
    assert twin.first[0].noise.scope is twin.last.noise.scope
    assert twin.first[0].noise.scope is not net.first[0].noise.scope
    for _ in range(2):
        assert torch.equal(twin(X), net(X))
    noiseprop.reset_noise(twin, 5)
    assert not torch.isclose(twin(X), net(X)).any()
    remove_noise(twin)
    assert len(noise_layers(net)) == 3
    assert snapshot(twin)[1] == list(Net().state_dict())


def doubled(module: nn.Module) -> nn.Module:
    """Return a shallow copy with separate parameters and children, as nn.parallel.replicate makes for each device."""
    twin = module._replicate_for_data_parallel()
    twin._parameters = {
        name: None if p is None else nn.Parameter(2 * p.detach()) for name, p in module._parameters.items()
    }
    for name, child in module.named_children():
        setattr(twin, name, doubled(child))
    return twin


def with_doubled_parameters(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._parameters = {name: nn.Parameter(2 * p.detach()) for name, p in module.named_parameters(recurse=False)}
    return twin


def test_shallow_copies_run_their_own_parameters(net: Net):
    linear, x = net.last, torch.linspace(-1, 1, 12).view(2, 6)
    twin = with_doubled_parameters(linear)
    clean = x @ (2 * linear.weight).T + 2 * linear.bias
    assert torch.equal(twin.forward(x), torch.nn.functional.linear(x, 2 * linear.weight, 2 * linear.bias))
    with sampling(net, "off"):
        torch.testing.assert_close(twin(x), clean)
    assert not torch.isclose(twin(x), clean).any()


def test_replicas_run_their_own_parameters(net: Net):
    wanted = copy.deepcopy(net)
    with torch.no_grad():
        for p in wanted.parameters():
            p.mul_(2)
    replica = doubled(net)
    y = replica(X)
    torch.testing.assert_close(y, wanted(X))
    y.sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in replica.parameters())


def test_deepcopy_of_a_model_that_waits():
    net = add_noise(Net().eval(), "linear")
    twin = copy.deepcopy(net)
    assert torch.equal(twin(X), net(X))


def test_pickle(net: Net):
    net(X)
    twin = pickle.loads(pickle.dumps(net))
    for _ in range(2):
        assert torch.equal(twin(X), net(X))
    assert list(remove_noise(twin).state_dict()) == list(Net().state_dict())


def test_torch_save_of_the_whole_model(net: Net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(X), net(X))


def test_state_dict_carries_the_noise_on(net: Net):
    net(X)
    twin = add_noise(Net().eval(), "linear", example=X, key=9)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(X), net(X))


# Distributed


def test_one_process_of_ddp(net: Net, tmp_path: Path):
    eager = copy.deepcopy(net)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):
            y, wanted = parallel(X), eager(X)
            assert torch.equal(y, wanted)
            y.sum().backward()
            wanted.sum().backward()
        for p, q in zip(net.parameters(), eager.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
        with sampling(parallel, draws=3), sampling(eager, draws=3):
            assert torch.equal(parallel(X), eager(X))
        with pytest.raises(InputError, match="wrapped"):
            add_noise(parallel, "linear", example=X)
        save_noise(parallel, tmp_path / "wrapped")
        save_noise(net, tmp_path / "plain")
        assert (tmp_path / "wrapped").read_bytes() == (tmp_path / "plain").read_bytes()
    finally:
        torch.distributed.destroy_process_group()


# Exported


exporting = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:`isinstance.treespec:FutureWarning", "ignore:While compiling"
)


@exporting
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_the_noise_free_model(net: Net, strict: bool):
    clean = Net().eval()(X)
    with sampling(net, "off"):
        program = torch.export.export(net, (X,), strict=strict)
    assert not any("gaussian_noise" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(X), clean)
    y = net(X)
    assert not torch.isclose(y, clean).any()  # the model itself is noisy still
    remove_noise(net)
    program = torch.export.export(net, (X,), strict=strict)
    assert torch.equal(program.module()(X), clean)
    assert sorted(program.state_dict) == sorted(Net().state_dict())


@exporting
def test_export_with_noise_that_is_for_training_only():
    net = add_noise(Net().eval(), "linear", at_inference=False, example=X)
    assert torch.equal(torch.export.export(net, (X,)).module()(X), Net().eval()(X))


@exporting
def test_export_of_the_noisy_model(net: Net):
    """Check that passes of the exported program follow one another as in the model."""
    eager = copy.deepcopy(net)
    module = torch.export.export(net, (X,)).module()
    noiseprop.reset_noise(net, 0)
    for _ in range(2):
        torch.testing.assert_close(module(X), eager(X))


@exporting
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:torch.onnx")
@pytest.mark.parametrize("removed", [True, False])
def test_onnx_export_of_the_noise_free_model(net: Net, tmp_path: Path, removed: bool):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    clean, file = Net().eval()(X), tmp_path / "net.onnx"
    if removed:
        remove_noise(net)
    with sampling(net, "off"):
        program = torch.onnx.export(net, (X,), dynamo=True, verbose=False)
    program.save(file)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    (y,) = session.run(None, {"x": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), clean)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("noisy", [["0", "1.0"], ["1.0"]])
def test_checkpointed_blocks_make_their_draws_again_after_the_block_of_draws(reentrant: bool, noisy: list[str]):
    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            return checkpoint(self[1], x, use_reentrant=reentrant) if torch.is_grad_enabled() else self[1](x)

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)))
    block = Checkpointed(*copy.deepcopy(plain))
    gradients: list[list[Tensor]] = []
    for model in (plain, block):
        add_noise(model, noisy, example=torch.zeros(2, 3))
        with sampling(model, draws=3):
            y = model(torch.ones(2, 3))
        y.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 6 + len(noisy)
    for some, other in zip(*gradients, strict=True):
        torch.testing.assert_close(some, other)
