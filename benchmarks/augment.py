"""Measure the cost of augmentation in a training step: `python benchmarks/augment.py`.

Claim: random crops and flips of a batch take at most 3 % of a bfloat16 training step of ResNet18. Two ratios are
measured: the time of `crop_and_flip` alone over the time of a step, and a step with a new augmented batch over a step
with the batch as stored in memory, timed in turn.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from measure import compare_times, time_in_turn, write_figures
from noiseprop.data import Dataset, batches, crop_and_flip
from noiseprop.models import resnet18

BATCH, SIDE = 128, 32
MOST = 0.03


def main() -> None:
    """Time both ratios, print them and save them."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = resnet18().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    dataset = Dataset("noise", images, torch.randint(10, (BATCH,)), tuple("0123456789"))
    generator = torch.Generator().manual_seed(0)

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x.to(memory_format=torch.channels_last))
        loss = cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def plain() -> None:
        step(*next(batches(dataset, BATCH, generator=generator)))

    def augmented() -> None:
        step(*next(batches(dataset, BATCH, generator=generator, augment=crop_and_flip)))

    x, _ = next(batches(dataset, BATCH, generator=None))
    steps = time_in_turn({"step": plain, "step, augmented": augmented}, warmup=3, rounds=15, seconds=120)
    run = {"crop_and_flip": lambda: crop_and_flip(x, generator=generator)}
    alone = time_in_turn(run, warmup=5, rounds=50, seconds=20)
    figures = {name: compare_times(steps, name) for name in steps}
    figures["crop_and_flip"] = {"milliseconds": compare_times(alone, "crop_and_flip")["milliseconds"]}
    share = figures["crop_and_flip"]["milliseconds"] / figures["step"]["milliseconds"]
    figures["crop_and_flip"]["share of a step"] = share
    print(f"ResNet18 bf16, batch {BATCH}: {figures['step']['milliseconds']:.0f} ms per step")
    print(
        f"crop_and_flip alone: {figures['crop_and_flip']['milliseconds']:.2f} ms, {share:.2%} of it (claim: {MOST:.0%})"
    )
    median, low, high = (figures["step, augmented"][key] for key in ("median", "quartile_1", "quartile_3"))
    print(f"step with augmentation: {median:.3f} x [{low:.3f}, {high:.3f}]")
    write_figures("augment", "the same step on the batch as it lies in memory", figures)


if __name__ == "__main__":
    main()
