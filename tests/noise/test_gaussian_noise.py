"""Test Eq. 1 and Eq. 3: three ways to compute the gradient, and the tensors that the op stores."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noiseprop import InputError, gaussian_noise
from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.kernels.philox import standard_normal

KEY = torch.tensor([2021, 3, 1, 0, 0])


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def path(request, monkeypatch):
    """Run every test on the compiled kernel and on plain torch operations."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "select_backend", lambda x: "torch")
    elif not kernels.has_numba:
        pytest.skip("numba is missing")
    return request.param


def eps_of(x, key=KEY, draws=1):
    return standard_normal(key, draws, len(x) // draws, x[0].numel()).view(x.shape).to(x.dtype)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize(
    ("neurons", "sigma_shape"), [((5,), (5,)), ((5,), (1,)), ((4, 3, 2), (4, 1, 1)), ((4, 3, 2), (2,)), ((4, 3, 2), ())]
)
def test_gradcheck_and_gradgradcheck(neurons, sigma_shape):
    x, sigma, mu = double(4, *neurons), double(*sigma_shape, seed=1), double(*sigma_shape, seed=2)
    f = lambda x, sigma, mu: gaussian_noise(x, sigma, mu=mu, key=KEY)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, sigma, mu))
    assert torch.autograd.gradgradcheck(lambda *a: f(*a).pow(3), (x, sigma, mu))


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 20), shape=st.lists(st.integers(1, 6), min_size=1, max_size=3), data=st.data())
def test_equals_plain_autograd_for_the_same_eps(batch, shape, data):
    sigma_shape = [data.draw(st.sampled_from([1, n])) for n in shape]
    x, sigma, mu = double(batch, *shape), double(*sigma_shape, seed=1), double(*sigma_shape, seed=2)
    upstream = double(batch, *shape, seed=3).detach()
    ours = gaussian_noise(x, sigma, mu=mu, key=KEY)
    plain = x + mu + sigma * eps_of(x)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    for a, b in zip(
        torch.autograd.grad(ours, (x, sigma, mu), upstream),
        torch.autograd.grad(plain, (x, sigma, mu), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("level", [0.7, 0.0, -0.7])
def test_gradient_is_right_for_any_sign_of_sigma(level):
    x, upstream = double(6, 4), double(6, 4, seed=1).detach()
    sigma = torch.full((4,), level, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gaussian_noise(x, sigma, key=KEY), sigma, upstream)
    torch.testing.assert_close(gradient, (upstream * eps_of(x)).sum(0), rtol=1e-5, atol=1e-3)


def test_nested_sums_of_eq_5_for_a_three_layer_network():
    """Compare with the sums of Eq. 5 as Python loops, for the noise of each of the three layers."""
    sizes, phi, slope = [3, 4, 3, 2], torch.tanh, lambda v: 1 - torch.tanh(v) ** 2
    theta = [double(m, n, seed=m * n).detach() * 0.7 for n, m in itertools.pairwise(sizes)]
    sigma = [double(m, seed=10 + m).requires_grad_() for m in sizes[1:]]
    x, keys = double(5, 3).detach(), [torch.tensor([9, 0, t, 0, 0]) for t in range(3)]
    a, pre = x, []
    for t in range(3):
        v = gaussian_noise(a @ theta[t].T, sigma[t], key=keys[t])
        pre.append(v.detach())
        a = phi(v)
    loss = (a**2).sum() / 2  # so that e_i = x_i
    gradients = torch.autograd.grad(loss, sigma)

    eps = [eps_of(pre[t], keys[t]) for t in range(3)]
    out = [phi(v) for v in pre]
    expected = [torch.zeros_like(s) for s in sigma]
    for n in range(5):
        for i3 in range(2):
            e = out[2][n, i3] * slope(pre[2][n, i3])
            expected[2][i3] += e * eps[2][n, i3]
            for i2 in range(3):
                expected[1][i2] += e * theta[2][i3, i2] * slope(pre[1][n, i2]) * eps[1][n, i2]
                for i1 in range(4):
                    chain = e * theta[2][i3, i2] * slope(pre[1][n, i2]) * theta[1][i2, i1] * slope(pre[0][n, i1])
                    expected[0][i1] += chain * eps[0][n, i1]
    for ours, sums in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, sums.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_follows_x_and_sigma_gets_at_least_float32(dtype):
    x = torch.randn(9, 8).to(dtype).requires_grad_()
    sigma = torch.rand(8).requires_grad_()
    y = gaussian_noise(x, sigma, key=KEY)
    assert y.dtype == dtype
    upstream = torch.randn(9, 8).to(dtype)
    to_x, to_sigma = torch.autograd.grad(y, (x, sigma), upstream)
    assert torch.equal(to_x, upstream)
    assert to_sigma.dtype == torch.float32
    torch.testing.assert_close(to_sigma, (upstream.float() * eps_of(x.float())).sum(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(y.float(), (x + sigma * eps_of(x.float())).to(dtype).float(), rtol=2**-7, atol=1e-3)


def test_the_gradient_of_mu_is_summed_in_float32():
    x, mu = torch.zeros(300, 1, 16, 16, dtype=torch.bfloat16), torch.zeros(1, 1, 1, requires_grad=True)
    upstream = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    (gradient,) = torch.autograd.grad(gaussian_noise(x, 1.0, mu=mu, key=KEY), mu, upstream)
    torch.testing.assert_close(gradient.double().item(), upstream.double().sum().item(), rtol=1e-6, atol=0)


def test_under_autocast_the_layers_keep_their_dtypes():
    linear, x = torch.nn.Linear(4, 6), torch.randn(3, 4)
    sigma = torch.ones(6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = gaussian_noise(linear(x), sigma, key=KEY)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(sigma.grad, eps_of(torch.zeros(3, 6)).sum(0), rtol=1e-3, atol=1e-3)


def test_pure_function_of_its_key():
    x, sigma = torch.zeros(6, 5), torch.ones(5)
    state = torch.get_rng_state()
    first = gaussian_noise(x, sigma, key=KEY)
    assert torch.equal(first, gaussian_noise(x, sigma, key=KEY))
    assert torch.equal(first, gaussian_noise(x, sigma, key=KEY[:3]))  # missing numbers are 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, gaussian_noise(x, sigma, key=KEY + 1))
    assert not x.any()  # never in place
    assert gaussian_noise(x, 0.0, key=KEY).data_ptr() != x.data_ptr()  # a new tensor
    assert first.unique(dim=0).shape[0] == 6  # each sample has different noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sigma_and_mu_may_be_numbers(dtype):
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = gaussian_noise(x, torch.full((5,), 0.1), mu=torch.full((5,), 2.0), key=KEY)
    numbers = gaussian_noise(x, 0.1, mu=2, key=KEY)
    assert numbers.dtype == dtype
    torch.testing.assert_close(numbers, tensors)
    assert torch.equal(gaussian_noise(x, 0, key=KEY), x)


def test_without_a_key_the_seed_comes_from_the_generator_or_torch():
    x, sigma = torch.zeros(2, 5), torch.ones(5)
    draw = lambda seed: gaussian_noise(x, sigma, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    torch.manual_seed(5)
    first, second = gaussian_noise(x, sigma), gaussian_noise(x, sigma)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(first, gaussian_noise(x, sigma))


def test_a_generator_of_another_device_draws_there(monkeypatch):
    """Check the device: torch raises an error for a generator on another device than the tensor."""

    class Elsewhere:
        device = torch.device("meta")

    devices = []

    def randint(low, high, size, *, generator, device):
        devices.append(device)
        return torch.zeros(size, dtype=torch.int64)

    monkeypatch.setattr(torch, "randint", randint)
    gaussian_noise(torch.zeros(2, 5), torch.ones(5), generator=Elsewhere())
    assert devices == [torch.device("meta")]


def test_only_the_key_is_saved():
    x, sigma = torch.randn(64, 100, requires_grad=True), torch.rand(100, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        gaussian_noise(x, sigma, mu=sigma * 2, key=KEY)
    assert max(saved) <= 100


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_one_output_and_one_gradient(path):
    if path == "torch":
        pytest.skip(
            "the torch path needs memory for its random words; test_only_the_key_is_saved covers what it stores"
        )
    script = """
import torch
from noiseprop import gaussian_noise
memory = lambda name: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1024
def start():
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
    return memory("VmHWM")
key, size = torch.tensor([1]), 64 * 2**20 // 4
warm = torch.zeros(16, 4096, requires_grad=True)
torch.autograd.grad(gaussian_noise(warm, torch.ones(4096), key=key), warm, warm.detach())  # imports and compiles
gaussian_noise(warm, torch.ones(4096, requires_grad=True), key=key).sum().backward()
x = torch.ones(1024, size // 1024, requires_grad=True)  # 64 MiB
sigma = torch.ones(size // 1024, requires_grad=True)
before = start()
y = gaussian_noise(x * 1.0, sigma, key=key)  # the product is freed at once
assert 120 < memory("VmHWM") - before < 140, memory("VmHWM") - before
assert 60 < memory("VmRSS") - before < 76, memory("VmRSS") - before
gradient = torch.full_like(y, 0.5)  # 64 MiB
before = start()
torch.autograd.grad(y, sigma, gradient)
assert memory("VmHWM") - before < 4, memory("VmHWM") - before
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_opcheck(path):
    x, sigma, mu = torch.randn(4, 3, 2, requires_grad=True), torch.rand(3, 1, requires_grad=True), torch.zeros(2)
    ops = torch.ops.noiseprop
    torch.library.opcheck(ops.gaussian_noise.default, (x, sigma, mu, KEY, 2))
    torch.library.opcheck(ops.gaussian_noise.default, (x, sigma, None, KEY, 1))
    torch.library.opcheck(ops.sigma_gradient.default, (x, KEY, (3, 1), 1))
    last = torch.randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(ops.gaussian_noise.default, (last, torch.rand(3, 2, 5), None, KEY, 1))
    torch.library.opcheck(ops.sigma_gradient.default, (last, KEY, (3, 2, 5), 1))
    for shape in ((3, 2, 5), (3, 1, 1)):
        assert ops.sigma_gradient(last.detach(), KEY, shape, 1).is_contiguous()


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs g++; .ci/run installs it"
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by inductor
def test_compiled_and_eager_agree():
    if not kernels.has_numba:
        pytest.skip("one path is enough")
    x, sigma = torch.randn(7, 5, requires_grad=True), torch.rand(5, requires_grad=True)
    compiled = torch.compile(lambda x, sigma, key: gaussian_noise(x, sigma, key=key).tanh(), fullgraph=True)
    for key in (KEY, KEY + 1):
        ours, eager = compiled(x, sigma, key), gaussian_noise(x, sigma, key=key).tanh()
        torch.testing.assert_close(ours, eager)
        for a, b in zip(
            torch.autograd.grad(ours.sum(), (x, sigma)), torch.autograd.grad(eager.sum(), (x, sigma)), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, "floating-point"),
        ({"x": torch.zeros(3, 4, dtype=torch.complex64)}, "floating-point"),
        ({"sigma": torch.ones(4, device="meta")}, "sigma is on meta, but x on cpu"),
        ({"sigma": torch.ones(3)}, r"sigma has shape \(3,\), which does not broadcast to the neurons \(4,\)"),
        ({"sigma": torch.ones(1, 4, 4)}, "sigma has shape"),
        ({"mu": torch.ones(5)}, "mu has shape"),
        ({"sigma": [1.0, 1.0, 1.0, 1.0]}, "got a list for sigma; pass a tensor, or one number"),
        ({"sigma": None}, "got a NoneType for sigma"),
        ({"mu": "zero"}, "got a str for mu"),
        ({"key": torch.zeros(6, dtype=torch.int64)}, "key of shape"),
        ({"key": torch.zeros(2)}, "one-dimensional int64"),
        ({"draws": 2}, "3 rows, which are not 2 draws"),
        ({"draws": 0}, "not 0 draws"),
    ],
)
def test_bad_input_is_named(arguments, sentence):
    given = {"x": torch.zeros(3, 4), "sigma": torch.ones(4), "key": KEY} | arguments
    with pytest.raises(InputError, match=sentence):
        gaussian_noise(given.pop("x"), given.pop("sigma"), **given)


def test_an_empty_batch_stays_empty():
    x, sigma = torch.zeros(0, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    y = gaussian_noise(x, sigma, key=KEY)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert torch.equal(sigma.grad, torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "view"),
    [
        ((12, 6, 5, 8), lambda x: x[::2, :, :, ::2]),
        ((1, 6, 5, 4), lambda x: x.expand(6, -1, -1, -1)),
        ((6, 1, 5, 4), lambda x: x.expand(-1, 6, -1, -1)),
        ((6, 4, 5, 6), lambda x: x.transpose(1, 3)),
        ((6, 6, 5, 4), lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:]),
        ((721,), lambda x: x[1:].view(6, 6, 5, 4)),
        ((6, 0, 5, 4), lambda x: x),
    ],
    ids=["step", "one sample", "one channel", "transposed", "a part of channels_last", "unaligned", "no neurons"],
)
def test_views_of_any_strides_have_the_noise_of_their_copies(dtype, shape, view):
    """Check that noise depends on the position in the tensor, not in memory, for any layout of the gradient."""
    x = view(torch.rand(shape).to(dtype))
    sigma = -torch.rand(x.shape[1], 1, 1)
    results = []
    for form in (x, x.contiguous().clone()):
        level = sigma.clone().requires_grad_()
        y = gaussian_noise(form, level, key=KEY)
        gradient = torch.linspace(-1, 1, 120)[: x[0].numel()].view(x.shape[1:]).expand(x.shape)  # strides of 0
        results.append((y, *torch.autograd.grad(y, level, gradient)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    expected = (x.float() + sigma * eps_of(x.float())) if x.numel() else x
    torch.testing.assert_close(results[0][0].float(), expected.float(), rtol=2**-7, atol=1e-3)
