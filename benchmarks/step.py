"""Measure time, stored bytes and peak memory of a step with noise: `python benchmarks/step.py [NETWORK …]`.

Every figure is a ratio to the same network without noise, in one run. The alternatives are the plain expression, the
paper's released code, PNI's noise on weights, and a no-op autograd function, which is the cost of calling one op per
site. Every row with a sigma trains it by `SigmaAdam`.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from measure import compare_times, time_in_turn, write_figures
from noiseprop import SigmaAdam, add_noise, noise_layers, sigmas, weights
from noiseprop.models import cnn, mlp, resnet18

BATCH = 128
NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...], str, bool, bool]] = {
    # name: (network, image, sites, bfloat16 autocast, channels_last)
    "MLP fp32": (mlp, (1, 28, 28), "fc", False, False),
    "CNN fp32": (cnn, (1, 28, 28), "all", False, False),
    "CNN bf16": (cnn, (1, 28, 28), "all", True, True),
    "ResNet18 fp32": (lambda: resnet18(head=()), (3, 32, 32), "all", False, True),
    "ResNet18 bf16": (lambda: resnet18(head=()), (3, 32, 32), "all", True, True),
}
EAGER = ("no noise", "no-op autograd function", "noiseprop", "plain", "released code", "PNI")
COMPILED = ("no noise", "no noise, compiled", "noiseprop, compiled")


class NoOp(torch.autograd.Function):
    """Identity, which costs one op call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return a view of x."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient."""
        return grad


class ReleasedNoise(torch.autograd.Function):
    """Noise of the released code, which stores it for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """Return ``x + |sigma| * eps``."""
        noise = sigma.abs() * torch.randn(x.shape)
        ctx.save_for_backward(noise, sigma)
        return x + noise

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``grad * noise / |sigma|``, summed over the batch."""
        noise, sigma = ctx.saved_tensors
        return grad, (grad * noise / sigma.abs()).sum(0)


class AlternativeNoise(nn.Module):
    """Noise with a sigma per neuron, by the plain expression or by the released code."""

    def __init__(self, shape: torch.Size, form: str) -> None:
        super().__init__()
        self.sigma, self.form = nn.Parameter(torch.ones(shape)), form

    def forward(self, x: Tensor) -> Tensor:
        """Add noise in the form that was chosen."""
        if self.form == "plain":
            return x + self.sigma.to(x.dtype) * torch.randn_like(x)
        return ReleasedNoise.apply(x, self.sigma).to(x.dtype)


def add_weight_noise(module: nn.Module, args: Any) -> None:
    """Add noise to the weights, scaled by their standard deviation (He et al., 2019), as a forward pre-hook."""
    w = module.raw_weight
    module.weight = w + module.alpha * w.std() * torch.randn_like(w)


def make_variant(network: str, name: str) -> tuple[nn.Module, list[Tensor], list[Tensor], Tensor]:
    """Return a network with noise, the parameters of the two optimizers, and a batch."""
    build, image, where, _, channels_last = NETWORKS[network]
    torch.manual_seed(0)
    model = build()
    x = torch.rand(BATCH, *image)
    sites = [model.get_submodule(path) for path in model.sites[where]]
    if name.startswith("noiseprop"):
        add_noise(model, model.sites[where], example=x[:1])
        levels: list[Tensor] = list(sigmas(model))
    elif name in ("plain", "released code"):
        shaped = add_noise(build(), model.sites[where], example=x[:1])
        noises = [AlternativeNoise(layer.sigma.shape, name) for layer in noise_layers(shaped).values()]
        for site, noise in zip(sites, noises, strict=True):
            site.register_forward_hook(lambda m, a, out, noise=noise: noise(out))
        levels = [noise.sigma for noise in noises]
    elif name == "PNI":
        for site in sites:
            raw = nn.Parameter(site.weight.detach())
            del site.weight
            site.raw_weight, site.alpha = raw, nn.Parameter(torch.tensor(0.25))
            site.register_forward_pre_hook(add_weight_noise)
        levels = [site.alpha for site in sites]
    else:
        levels = []
        if name == "no-op autograd function":
            for site in sites:
                site.register_forward_hook(lambda m, a, out: NoOp.apply(out))
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    known = {id(level) for level in levels}
    return model, [p for p in weights(model) if id(p) not in known], levels, x


def make_step(network: str, name: str) -> Callable[[], Tensor]:
    """Return a training step: both passes and both optimizers."""
    model, rest, levels, x = make_variant(network, name)
    low = NETWORKS[network][3]
    optimizers: list[Any] = [torch.optim.Adam(rest, 1e-3, weight_decay=1e-4, fused=True)]
    if levels:
        optimizers.append(SigmaAdam(levels))
    y = torch.randint(10, (BATCH,))
    call = torch.compile(model) if name.endswith("compiled") else model

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = cross_entropy(call(x), y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return run


def count_saved_bytes(run: Callable[[], Tensor]) -> int:
    """Return the bytes of all storages that the forward pass saves for the backward pass."""
    sizes: dict[int, int] = {}

    def record_storage(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record_storage, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def measure_peak(network: str, name: str) -> float:
    """Return the peak memory (MiB) of a process's first full steps, above its memory after two steps of 8 images.

    The two small steps trigger all imports and compilation.
    """
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, step
memory = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
step.BATCH = 8
run = step.make_step({network!r}, {name!r}); run(); run()
step.BATCH = {BATCH}
run = step.make_step({network!r}, {name!r})
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
run(); run()
print(memory("VmHWM") - before)
"""
    # so that freed tensors return to the system at once
    allocator = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | allocator
    )
    return float(run.stdout)


def measure_network(network: str) -> dict[str, Any]:
    """Measure all variants of one network."""
    runs = {name: make_step(network, name) for name in dict.fromkeys(EAGER + COMPILED)}
    saved = {name: count_saved_bytes(runs[name]) for name in EAGER}
    heavy = network.startswith("ResNet")
    often: dict[str, Any] = {"warmup": 2, "rounds": 15} if heavy else {"warmup": 10, "rounds": 30, "burst": 10}
    figures: dict[str, Any] = {}
    times: dict[str, list[float]] = {}
    # Eager steps are slower in a process that has compiled anything, so they are measured first.
    for names, seconds in ((EAGER, 300 if heavy else 120), (COMPILED, 80 if heavy else 60)):
        times = time_in_turn({name: runs[name] for name in names}, most=2000, seconds=seconds, **often)
        figures = {name: compare_times(times, name) for name in names} | figures
    pair = {name: times[name] for name in COMPILED[1:]}
    figures["noiseprop, compiled"]["over no noise, compiled"] = compare_times(pair, "noiseprop, compiled")
    for name, count in saved.items():
        figures[name]["bytes"] = count / saved["no noise"]
    processes = 1 if heavy else 5  # the system reports memory in steps of 0.1 MiB, a large share for an MLP
    peaks = {
        name: statistics.median(measure_peak(network, name) for _ in range(processes))
        for name in ("no noise", "plain", "released code", "noiseprop")
    }
    for name, size in peaks.items():
        figures[name]["peak"] = size / peaks["no noise"]
    figures = {name: figures[name] for name in runs}
    print(f"\n{network}: {figures['no noise']['milliseconds']:.2f} ms without noise")
    for name, f in figures.items():
        extra = "".join(f"  {key} {f[key]:.3f} x" for key in ("bytes", "peak") if key in f)
        print(
            f"  {name:24} {f['median']:.3f} x  [{f['quartile_1']:.3f}, {f['quartile_3']:.3f}]"
            f"  {f['rounds']} rounds{extra}",
            flush=True,
        )
    return figures


def main() -> None:
    """Measure the networks that the command line names, or all."""
    torch.set_flush_denormal(True)
    chosen = [name for name in NETWORKS if not sys.argv[1:] or name in sys.argv[1:]]
    for name in chosen:
        write_figures(f"step-{name.lower().replace(' ', '-')}", "the same network without noise", measure_network(name))


if __name__ == "__main__":
    main()
