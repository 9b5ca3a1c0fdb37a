"""Validate and measure noise on a GPU in under five minutes. `python benchmarks/gpu.py [--dry-run] [--seconds 270]`.

1. Words, normals, gradients and determinism of the kernels, against the definition of the stream.
2. Time of the kernels, relative to `x.clone()` and to `x + sigma * torch.randn_like(x)`, eager and compiled.
3. Time, memory and kernel launches of training steps, eager, compiled and as CUDA graphs, relative to noise-free ones.

The figures go to results/benchmarks/gpu-<name of the GPU>.json. It lists the measurements that the time limit left out.
`--dry-run` goes through all of it on a CPU with tiny sizes and Triton's interpreter, and its times mean nothing.
The script needs Python, torch 2.11, triton 3.6, numba and this repository.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRY_RUN = "--dry-run" in sys.argv
if DRY_RUN:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
if importlib.util.find_spec("noiseprop") is None:  # a checkout on a machine without a package index
    sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from noiseprop import SigmaAdam, add_noise, noise_layers, sigmas, weights  # noqa: E402
from noiseprop.models import cnn, mlp, resnet18  # noqa: E402
from noiseprop.noise.kernels import dispatch, triton_noise  # noqa: E402

DEVICE = "cpu" if DRY_RUN else "cuda"
KEY = (2021, 3, 1, 0, 0)


class Bottleneck(nn.Module):
    """Block of ResNet50 (He et al., 2016): 1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if channels != 4 * width:
            projection = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (B, 4 * width, H, W)."""
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50() -> nn.Sequential:
    """Return ResNet50 for 224 x 224 images."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, channels = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(channels, width, stride if number == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, int, int], Any]] = {  # constructor, image, noise sites
    "MLPN": (mlp, (1, 28, 28), "fc"),
    "CNN-AN": (cnn, (1, 28, 28), "all"),
    "ResNet18-AN": (lambda: resnet18(head=()), (3, 32, 32), "all"),
    "ResNet50": (resnet50, (3, 224, 224), ["*.conv3"]),
}


def validate() -> dict[str, str]:
    """Run the checks of the test suite; return "passed" or the error of each."""
    path = ROOT / "tests" / "noise" / "kernels" / "triton_checks.py"
    specification = importlib.util.spec_from_file_location("triton_checks", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    found = {}
    for name, check in module.CHECKS.items():
        if DRY_RUN and name not in ("words", "samples"):
            continue  # the tests run the others in the interpreter
        try:
            check(DEVICE)
            found[name] = "passed"
        except AssertionError as error:
            found[name] = f"failed: {error}"
    return found


def measure_seconds(run: Callable[[], object], rounds: int = 30) -> float:
    """Return the median time of a call on the device, in seconds."""
    for _ in range(1 if DRY_RUN else 5):
        run()
    times = []
    for _ in range(1 if DRY_RUN else rounds):
        if DRY_RUN:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def compile_function(function: Any) -> Any:
    """Compile with inductor, or trace only in a dry run."""
    return torch.compile(function, backend="aot_eager" if DRY_RUN else "inductor")


def measure_kernels() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield picoseconds per element of each way to add noise, by dtype and memory format."""
    shape = (4, 4, 2, 2) if DRY_RUN else (512, 64, 32, 32)
    layouts = (torch.contiguous_format, torch.channels_last)
    cases = list(itertools.product((torch.float32, torch.bfloat16), layouts))
    for dtype, layout in cases[::3] if DRY_RUN else cases:
        x = torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=layout)
        sigma, key = torch.rand(shape[1:], device=DEVICE), torch.tensor(KEY, device=DEVICE)
        leaf, grad = sigma.clone().requires_grad_(), torch.randn_like(x)

        def add_plainly(sigma: Tensor, x: Tensor = x) -> Tensor:
            return (x + sigma * torch.randn_like(x)).to(x.dtype)

        def run_both(add: Callable[[Tensor], Tensor], leaf: Tensor = leaf, grad: Tensor = grad) -> None:
            torch.autograd.grad(add(leaf), leaf, grad)

        def add_fused(sigma: Tensor, x: Tensor = x, key: Tensor = key) -> Tensor:
            return torch.ops.noiseprop.gaussian_noise(x, sigma, None, key, 1)

        compiled = compile_function(add_plainly)
        runs = {
            "clone": lambda x=x: x.clone(),
            "fused forward": lambda x=x, s=sigma, k=key: triton_noise.add_noise_on_gpu(x, s, None, k, 1),
            "fused backward": lambda g=grad, k=key: triton_noise.compute_sigma_gradient_on_gpu(g, k, g.shape[1:], 1),
            "plain forward, eager": lambda s=sigma, add=add_plainly: add(s),
            "plain forward, compiled": lambda s=sigma, add=compiled: add(s),
            "fused, both passes": lambda run=run_both, add=add_fused: run(add),
            "plain, both passes, eager": lambda run=run_both, add=add_plainly: run(add),
            "plain, both passes, compiled": lambda run=run_both, add=compiled: run(add),
        }
        name = f"{str(dtype)[6:]}, {str(layout)[6:].removesuffix('_format')}"
        yield name, {label: measure_seconds(run) / x.numel() * 1e12 for label, run in runs.items()}


class PlainNoise(nn.Module):
    """Noise as a user would write it."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + sigma * eps`` from torch's generator."""
        return (x + self.sigma * torch.randn_like(x)).to(x.dtype)


def make_network(name: str, variant: str) -> nn.Module:
    """Return a network on the device without noise, with noiseprop's, or with plain noise at the same sites."""
    make, image, sites = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    if variant != "noise-free":
        selected = network.sites[sites] if isinstance(sites, str) else sites
        noisy = add_noise(make(), selected, init=0.1, example=torch.zeros(1, *image))
        if variant == "fused":
            network = noisy
        else:
            for path, layer in noise_layers(noisy).items():
                plain = PlainNoise(layer.sigma.shape)
                module = network.get_submodule(path.removesuffix(".noise"))
                module.add_module("plain_noise", plain)
                module.register_forward_hook(lambda module, inputs, output: module.plain_noise(output))
    return network.to(DEVICE, memory_format=torch.channels_last).train()


def make_step(name: str, variant: str, batch: int, precision: str, mode: str) -> Callable[[], object]:
    """Return a training step: forward, backward, and Adam for the weights and SigmaAdam for the noise."""
    network = make_network(name, variant)
    image = NETWORKS[name][1]
    x = torch.rand(batch, *image, device=DEVICE).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=DEVICE)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(weights(network), fused=not DRY_RUN)]
    if variant == "fused":
        optimizers.append(SigmaAdam(sigmas(network)))
    call = compile_function(network) if mode == "compiled" else network

    def run_gradients() -> None:
        half = torch.autocast(DEVICE, torch.bfloat16) if precision == "bf16" else nullcontext()
        with half:
            loss = cross_entropy(call(x).float(), y)
        loss.backward()

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        run_gradients()
        for optimizer in optimizers:
            optimizer.step()

    if mode != "graph" or DRY_RUN:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    network.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_gradients()

    def replay() -> None:
        graph.replay()  # overwrites the gradients
        for optimizer in optimizers:
            optimizer.step()

    return replay


def count_launches(step: Callable[[], object]) -> int:
    """Return the number of kernels, copies and fills that a step runs on the GPU."""
    if DRY_RUN:
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or ())


def measure_step(name: str, batch: int, precision: str, mode: str) -> dict[str, dict[str, float]]:
    """Return milliseconds, peak MiB and launches of a step of each variant."""
    row = {}
    for variant in ("noise-free", "fused", "plain") if mode == "eager" else ("noise-free", "fused"):
        if not DRY_RUN:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = make_step(name, variant, batch, precision, mode)
        seconds = measure_seconds(step, rounds=10 if name == "ResNet50" else 30)
        memory = 0 if DRY_RUN else torch.cuda.max_memory_allocated() / 2**20
        row[variant] = {"milliseconds": seconds * 1e3, "peak_mib": memory, "launches": count_launches(step)}
        del step
    return row


def list_steps() -> Iterator[tuple[str, int, str, str]]:
    """Yield network, batch, precision and mode, what matters most first."""
    if DRY_RUN:
        yield from (("MLPN", 4, "fp32", mode) for mode in ("eager", "compiled", "graph"))
        return
    order = ("ResNet18-AN", "MLPN", "CNN-AN", "ResNet50")
    for mode, batch, precision in itertools.product(("eager", "graph", "compiled"), (128, 1024), ("fp32", "bf16")):
        for name in order:
            if name != "ResNet50" or (batch == 128 and mode != "compiled"):
                yield name, batch, precision, mode


def describe_machine() -> dict[str, Any]:
    """Return the GPU and the versions that the figures belong to."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    machine = {
        "gpu": "none: dry run" if DRY_RUN else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if DRY_RUN else torch.backends.cudnn.version(),
        "commit": run.stdout.strip() or "unknown",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not DRY_RUN:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False)
        machine["driver"] = driver.stdout.strip().partition("\n")[0]
    return machine


def main() -> None:
    """Print the figures as they come, and write them after each, so that an interrupted run keeps its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU; the times mean nothing")
    parser.add_argument("--seconds", type=float, default=270, help="start no measurement after this time")
    parser.add_argument("--output", type=Path, help="folder of the figures; results/benchmarks if omitted")
    options = parser.parse_args()
    if not DRY_RUN and not torch.cuda.is_available():
        parser.error("torch finds no GPU; pass --dry-run to go through the script on a CPU")
    if DRY_RUN:
        dispatch.select_backend = lambda x: "triton"
    began = time.monotonic()
    figures: dict[str, Any] = {"machine": describe_machine(), "checks": {}, "kernels": {}, "steps": {}, "left_out": []}
    folder = options.output or (ROOT / "results" / "benchmarks" if not DRY_RUN else None)
    name = "dry-run" if DRY_RUN else re.sub(r"\W+", "-", figures["machine"]["gpu"]).strip("-").lower()

    def record(section: str, label: str, value: Any) -> None:
        figures[section][label] = value
        print(f"[{time.monotonic() - began:4.0f} s] {label}: {value}", flush=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f"gpu-{name}.tmp"
            aside.write_text(json.dumps(figures, indent=1) + "\n")
            aside.replace(folder / f"gpu-{name}.json")

    for label, outcome in validate().items():
        record("checks", label, outcome)
    for label, row in measure_kernels():
        record("kernels", label, {key: round(value, 3) for key, value in row.items()})
    for network, batch, precision, mode in list_steps():
        label = f"{network}, batch {batch}, {precision}, {mode}"
        if time.monotonic() - began > options.seconds:
            figures["left_out"].append(label)
            continue
        try:
            record("steps", label, measure_step(network, batch, precision, mode))
        except torch.OutOfMemoryError as error:
            record("steps", label, {"error": str(error).partition("\n")[0]})
    record("steps", "left out", figures.pop("left_out"))
    if any(outcome != "passed" for outcome in figures["checks"].values()):
        sys.exit("the kernels disagree with the definition; see the checks above")


if __name__ == "__main__":
    main()
