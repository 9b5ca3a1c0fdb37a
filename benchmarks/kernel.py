"""Measure the fused kernels against torch, NumPy and memory, in ns per element: `python benchmarks/kernel.py`."""

import numpy as np
import torch

from measure import compare_times, time_in_turn, write_figures
from noiseprop.noise.gaussian_noise import gaussian_noise
from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.kernels import numba_launch

SHAPE = (128, 65_536)
KEY = torch.tensor([2021, 0, 0, 0, 0])


def make_candidates(dtype: torch.dtype, memory_format: torch.memory_format) -> dict[str, object]:
    """Return the fused kernels, plain alternatives, and the limit by memory: one read and one write."""
    shape = SHAPE if memory_format is torch.contiguous_format else (128, 64, 32, 32)
    x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=memory_format)
    y, sigma = torch.empty_like(x), torch.ones(shape[1:])
    low = sigma.to(dtype)
    numbers, rng = np.empty(x.numel(), np.float32), np.random.Generator(np.random.SFC64(0))
    return {
        "plain: x + sigma * randn_like(x)": lambda: x + low * torch.randn_like(x),
        "torch.randn alone": lambda: torch.randn_like(x),
        "numpy SFC64 alone": lambda: rng.standard_normal(out=numbers, dtype=np.float32),
        "plain gradient: (grad * eps).sum(0)": lambda: (x * y).sum(0),
        "fused forward": lambda: kernels.add_gaussian_noise(x, sigma, None, KEY, 1),
        "fused forward, into an existing tensor": lambda: numba_launch.add_noise_on_cpu(x, sigma, None, KEY, 1, out=y),
        "fused gradient of sigma": lambda: kernels.compute_sigma_gradient(x, KEY, x.shape[1:], 1),
        "memory: x.clone()": lambda: x.clone(),
        "memory: y.copy_(x)": lambda: y.copy_(x),
        "memory: x.sum()": lambda: x.sum(),
    }


def main() -> None:
    """Print the table and save it."""
    figures = {}
    for dtype, memory_format in (
        (torch.float32, torch.contiguous_format),
        (torch.bfloat16, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last),
    ):
        name = f"{str(dtype)[6:]}, {str(memory_format)[6:].removesuffix('_format')}"
        times = time_in_turn(make_candidates(dtype, memory_format), rounds=20, warmup=3, seconds=90)
        elements = SHAPE[0] * SHAPE[1]
        figures[name] = {
            k: row | {"nanoseconds": row["milliseconds"] * 1e6 / elements}
            for k, row in ((k, compare_times(times, k)) for k in times)
        }
        print(f"\n{name}, {SHAPE[0]} x {SHAPE[1]} elements, {torch.get_num_threads()} threads")
        for k, figure in figures[name].items():
            print(f"  {k:38} {figure['nanoseconds']:7.2f} ns   {1 / figure['median']:7.2f} x as fast as plain")
    measure_small_inputs(figures)
    write_figures("kernel", "x + sigma * torch.randn_like(x), the plain expression", figures)


def measure_small_inputs(figures: dict[str, object]) -> None:
    """Measure the cost of a call on small inputs, the layers of the MLP."""
    for neurons in (100, 50, 10):
        x, sigma = torch.zeros(128, neurons, requires_grad=True), torch.ones(neurons, requires_grad=True)
        times = time_in_turn(
            {
                "plain": lambda x=x, sigma=sigma: x + sigma * torch.randn_like(x),
                "fused": lambda x=x, sigma=sigma: gaussian_noise(x, sigma, key=KEY),
            },
            warmup=200,
            rounds=200,
            most=2000,
            burst=20,
        )
        figures[f"float32, 128 x {neurons}, with autograd"] = {k: compare_times(times, k) for k in times}
        line = ", ".join(f"{k} {compare_times(times, k)['milliseconds'] * 1e3:.1f} us" for k in times)
        print(f"128 x {neurons}: {line}")


if __name__ == "__main__":
    main()
