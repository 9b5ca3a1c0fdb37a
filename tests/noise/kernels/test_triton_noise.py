"""The Triton kernels: interpreted on the CPU, compiled ahead of time, counted on meta tensors, and run on a GPU."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from noiseprop import NeuronNoise, gaussian_noise
from noiseprop.errors import NoisepropWarning
from noiseprop.noise.kernels import dispatch

triton = pytest.importorskip("triton", minversion="3.6")
import triton.language as tl  # noqa: E402

from noiseprop.noise.kernels import triton_noise  # noqa: E402

CHECKS_FILE = Path(__file__).with_name("triton_checks.py")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def load_checks():
    specification = importlib.util.spec_from_file_location("triton_checks", CHECKS_FILE)
    checks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(checks)
    return checks.CHECKS


def test_the_interpreted_kernels_agree_with_the_definition():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(CHECKS_FILE)], timeout=500, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 8


def compile_kernel(kernel, dtype, architecture, warps=4, **constants):
    """Compile a kernel ahead of time; return its machine instructions by name, and its registers and stack."""
    wide = "fp64" if dtype == "fp64" else "fp32"
    aligned = constants.pop("aligned", True)
    constants = {"DTYPE": getattr(tl, f"float{wide[2:]}"), "INDEX": tl.int32, "BLOCK": 512} | constants
    pointers = dict.fromkeys(("y", "x", "grad"), f"*{dtype}") | dict.fromkeys(("sigma", "mu", "parts"), f"*{wide}")
    signature = {
        name: "constexpr" if name in constants else "*i64" if name == "key" else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    divisible = [*pointers, *(("size", "inner", "pixels") if aligned else ())]
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in divisible}
    source = triton.compiler.ASTSource(
        kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, attributes
    )
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})


def count_instructions(compiled, folder):
    """Return a kernel's machine instructions by name, and the bytes of its stack."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    code, resources = (
        subprocess.run([TOOLS / "cuobjdump", what, binary], capture_output=True, text=True, check=True).stdout
        for what in ("--dump-sass", "--dump-resource-usage")
    )
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code)
    return Counter(i for i in instructions if i != "NOP"), int(re.search(r"STACK:(\d+)", resources)[1])


def variants():
    """Yield kernel, dtype, architecture, constants, and the most instructions per element."""
    forward, backward = triton_noise.add_noise_kernel, triton_noise.sum_gradient_kernel
    kinds = [(2, 3), (2, 2), (1, 1), (0, 0)]
    for architecture, dtype, last, aligned in itertools.product(
        (80, 90), ("fp32", "bf16", "fp16", "fp64"), (False, True), (True, False)
    ):
        # Positions with channels last take a division each, sizes without a factor of 16 are loaded one by one, and a
        # thread has only two neurons in float64.
        most = 33 + 3 * last + 8 * (not aligned) + 6 * (dtype == "fp64")
        quick = (architecture, dtype, last, aligned) in ((90, "fp32", False, True), (80, "bf16", True, True))
        layout = {"CHANNELS_LAST": last, "aligned": aligned}
        name = f"sm_{architecture} {dtype}{' channels last' * last}{' unaligned' * (not aligned)}"
        for sigma, mu in kinds:
            marks = () if quick and (sigma, mu) == ((2, 3) if dtype == "fp32" else (1, 1)) else pytest.mark.slow
            yield pytest.param(
                forward,
                dtype,
                architecture,
                layout | {"SIGMA_KIND": sigma, "MU_KIND": mu},
                most,
                id=f"forward {name} sigma {sigma} mu {mu}",
                marks=marks,
            )
        yield pytest.param(
            backward, dtype, architecture, layout, most, id=f"backward {name}", marks=() if quick else pytest.mark.slow
        )


@pytest.mark.parametrize(("kernel", "dtype", "architecture", "constants", "most"), list(variants()))
def test_compiled_kernels_keep_their_values_in_registers(kernel, dtype, architecture, constants, most, tmp_path):
    warps, elements = (8, 2 * 8) if dtype == "fp64" else (4, 4 * 8)  # neurons x samples per thread
    compiled = compile_kernel(kernel, dtype, architecture, warps, **constants)
    instructions, stack = count_instructions(compiled, tmp_path)
    assert stack == 0
    assert instructions["LDL"] == instructions["STL"] == 0  # no spills
    assert instructions["LDS"] + instructions["STS"] <= 16  # only sigma and mu go through shared memory
    assert instructions["FFMA"] > 6 * elements
    assert sum(instructions.values()) / elements <= most
    assert not any(name.startswith(("ATOM", "RED")) for name in instructions)


@pytest.mark.parametrize("name", ["add_noise_kernel", "sum_gradient_kernel"])
@pytest.mark.parametrize(
    "special",
    [
        {"size": 1, "inner": 1, "pixels": 1, "BLOCK": 128},  # Triton specialises ones
        {"INDEX": tl.int64, "CHANNELS_LAST": True},
    ],
    ids=str,
)
def test_special_sizes_compile(name, special, tmp_path):
    kernel = getattr(triton_noise, name)
    constants = {"SIGMA_KIND": 1, "MU_KIND": 3, "CHANNELS_LAST": False} | special
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    compiled = compile_kernel(kernel, "fp32", 90, warps=constants.get("BLOCK", 512) // 128, **constants)
    instructions, stack = count_instructions(compiled, tmp_path)
    assert stack == instructions["LDL"] == instructions["STL"] == 0


class CountKernels(TorchDispatchMode):
    """Counts the operations that launch a kernel, and forbids those that copy between host and device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert name not in ("aten::_local_scalar_dense", "aten::item"), "the host waits for the device"
        result = function(*args, **(kwargs or {}))
        devices = {t.device.type for t in (*args, *((kwargs or {}).values())) if isinstance(t, torch.Tensor)}
        assert devices <= {"meta"}, (name, devices)
        is_view = any(a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments)
        if not is_view and name not in (
            "aten::empty.memory_format",
            "aten::empty_like",
            "aten::new_empty",
            "aten::detach",
        ):
            self.names.append(name)
        return result


@pytest.fixture
def counter(monkeypatch):
    """Counts kernels on the meta device, which stands for a GPU; Triton's launches are only counted."""
    monkeypatch.setattr(dispatch, "select_backend", lambda x: "triton" if x.is_meta else "numba")
    counter = CountKernels()
    monkeypatch.setattr(triton_noise, "_launch_kernel", lambda kernel, *rest: counter.names.append(kernel.fn.__name__))
    return counter


@pytest.mark.parametrize(
    ("neurons", "sigma", "mean", "forward", "backward"),
    [
        ((64, 8, 8), (64, 8, 8), False, 1, 2),
        ((64, 8, 8), (64, 1, 1), False, 1, 2),
        ((64, 8, 8), (), True, 1, 3),
        ((100,), (100,), True, 1, 3),
        ((7, 64), (64,), False, 2, 2),
        ((7, 64), (64,), True, 3, 3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_site_launches_at_most_three_kernels_each_way(counter, neurons, sigma, mean, forward, backward, dtype):
    x, grad = (torch.empty(128, *neurons, dtype=dtype, device="meta") for _ in range(2))
    level = torch.empty(sigma, device="meta")
    key = torch.empty(5, dtype=torch.int64, device="meta")
    with counter:
        y = dispatch.add_gaussian_noise(x, level, level if mean else None, key, 1)
    assert (y.shape, y.dtype, y.device.type) == (x.shape, dtype, "meta")
    assert len(counter.names) == forward <= 3, counter.names
    counter.names.clear()
    with counter:
        to_sigma = dispatch.compute_sigma_gradient(grad, key, sigma, 1)
        to_mu = dispatch.compute_mu_gradient(grad, sigma) if mean else to_sigma
    assert to_sigma.shape == to_mu.shape == torch.Size(sigma)
    assert to_sigma.dtype == to_mu.dtype == torch.float32
    assert len(counter.names) == backward <= 3, counter.names


def test_a_device_without_kernels_warns_once(monkeypatch):
    monkeypatch.setattr(dispatch, "select_backend", lambda x: "torch")
    monkeypatch.setattr(dispatch, "has_numba", False)
    dispatch._warn_without_kernel.cache_clear()
    draw = lambda: gaussian_noise(torch.zeros(2, 3), 1.0, key=torch.tensor([1]))  # noqa: E731
    with pytest.warns(NoisepropWarning, match=r"noise on cpu uses plain torch operations.*install numba"):
        draw()
    draw()
    dispatch._warn_without_kernel.cache_clear()


def test_backends_by_device(monkeypatch):
    assert dispatch.select_backend(torch.zeros(1)) == "numba"
    assert dispatch.select_backend(torch.zeros(1, dtype=torch.float16)) == "torch"
    for device in (torch.device("mps"), torch.device("meta")):
        assert not dispatch.can_run_triton(device)
    capability = [(6, 1), (9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[device.index])
    assert [dispatch.can_run_triton(torch.device("cuda", i)) for i in range(2)] == [False, True]
    dispatch.can_run_triton.cache_clear()


def test_the_gpu_benchmark_runs_dry(tmp_path):
    script = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--dry-run", "--output", str(tmp_path)]
    run = subprocess.run(command, timeout=500, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert set(figures["checks"].values()) == {"passed"}
    assert len(figures["kernels"]) == 2
    assert figures["steps"].pop("left out") == []
    assert [set(row) for row in figures["steps"].values()] == [
        {"noise-free", "fused", "plain"},
        {"noise-free", "fused"},
        {"noise-free", "fused"},
    ]
    assert figures["machine"]["gpu"] == "none: dry run"


@pytest.mark.cuda
@ON_GPU
@pytest.mark.parametrize(
    "name", ["words", "normals", "shapes", "samples", "special_values", "positions", "wide_positions", "autograd"]
)
def test_the_kernels_on_a_gpu_agree_with_the_definition(name):
    torch.manual_seed(0)
    load_checks()[name]("cuda")


@pytest.mark.cuda
@ON_GPU
def test_cpu_and_gpu_draw_the_same_noise():
    x, sigma, key = torch.randn(33, 64, 9, 9), torch.rand(64, 9, 9), torch.tensor([5, 4, 3, 2, 1])
    here = gaussian_noise(x, sigma, key=key)
    there = gaussian_noise(x.cuda(), sigma.cuda(), key=key.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=6e-5)


@pytest.mark.cuda
@ON_GPU
@pytest.mark.parametrize("mode", ["compiled", "graph"])
def test_compiled_and_captured_steps_draw_new_noise(mode):
    noise = NeuronNoise((64,), init=0.5).cuda()
    eager = NeuronNoise((64,), init=0.5).cuda()
    eager.load_state_dict(noise.state_dict())
    x = torch.randn(128, 64, device="cuda")
    expected = [eager(x).detach() for _ in range(3)]
    if mode == "compiled":
        step = torch.compile(noise, fullgraph=True)
        found = [step(x).detach().clone() for _ in range(3)]
    else:
        state = {name: value.clone() for name, value in noise.state_dict().items()}
        noise(x)  # compiles the kernel
        noise.load_state_dict(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = noise(x)
        noise.load_state_dict(state)
        found = [(graph.replay(), y.detach().clone())[1] for _ in range(3)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(found[0], found[1])
