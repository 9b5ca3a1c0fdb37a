"""Measure how the cost of noise grows with batch, width and number of noisy layers: `python benchmarks/growth.py`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from measure import compare_times, time_in_turn, write_figures
from noiseprop import SigmaAdam, add_noise, sigmas, weights


def make_step(batch: int, width: int, noisy: int, *, layers: int = 8) -> Callable[[], Tensor]:
    """Return a training step of a network of Linear layers, the first `noisy` of which have learned noise."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())), nn.Linear(width, 10)
    )
    x, y = torch.rand(batch, width), torch.randint(10, (batch,))
    if noisy:
        add_noise(model, [str(2 * i) for i in range(noisy)], example=x[:1])
    optimizers = [torch.optim.Adam(weights(model), 1e-3, fused=True)]
    if noisy:
        optimizers.append(SigmaAdam(sigmas(model)))

    def run() -> Tensor:
        loss = cross_entropy(model(x), y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return run


def main() -> None:
    """Vary one of batch, width and number of noisy layers at a time."""
    torch.set_flush_denormal(True)
    settings = {
        "batch": [(batch, 256, 8) for batch in (8, 32, 128, 512, 2048)],
        "width": [(128, width, 8) for width in (32, 128, 512, 2048)],
        "noisy layers": [(128, 256, noisy) for noisy in (1, 2, 4, 8)],
    }
    figures: dict[str, list[dict[str, float]]] = {}
    for varied, rows in settings.items():
        figures[varied] = []
        for batch, width, noisy in rows:
            runs = {"no noise": make_step(batch, width, 0), "noise": make_step(batch, width, noisy)}
            times = time_in_turn(runs, warmup=5, rounds=20, most=200, seconds=12, burst=10)
            figure = {"batch": batch, "width": width, "noisy layers": noisy, **compare_times(times, "noise")}
            figure["milliseconds without"] = compare_times(times, "no noise")["milliseconds"]
            figures[varied].append(figure)
            print(
                f"batch {batch:5} width {width:5} noisy layers {noisy}: {figure['median']:.3f} x of "
                f"{figure['milliseconds without']:8.2f} ms",
                flush=True,
            )
    write_figures("growth", "the same network of eight Linear layers without noise", figures)


if __name__ == "__main__":
    main()
