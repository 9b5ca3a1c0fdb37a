"""Estimate the cost of noise for a ResNet50 on ImageNet with 64 GPUs, for docs/scale.md.

The network is torchvision's ResNet50 (stride in the 3 x 3 convolutions), counted layer by layer. The GPU is an A100 at
the peak rates of its data sheet. Nothing was measured.
"""

from collections.abc import Iterator
from typing import NamedTuple

GPUS, BATCH, IMAGES = 64, 256, 1_281_167  # BATCH: images per GPU and step
BANDWIDTH = 2.0e12  # bytes per second between a GPU and its memory
MATRIX = 312e12  # bfloat16 operations per second in its matrix units
VECTOR = 19.5e12  # 32-bit operations per second in its other units, integer and floating together
NETWORK = 25e9  # bytes per second from each GPU to the others, 200 Gbit/s
BF16, FP32 = 2, 4  # bytes
OPERATIONS = 35  # per normal: 20 on integers and 15 on floats, as compiled for AVX-512

STAGES = ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))  # blocks, width, side of the feature maps
CLASSES = 1000


class Conv(NamedTuple):
    """Convolution without bias, followed by batch norm."""

    inputs: int
    outputs: int
    kernel: int
    side: int  # of the output feature maps

    @property
    def weights(self) -> int:
        """Return the number of parameters, including the batch norm's."""
        return self.inputs * self.outputs * self.kernel**2 + 2 * self.outputs

    @property
    def products(self) -> int:
        """Return the number of multiplications per image."""
        return self.inputs * self.outputs * self.kernel**2 * self.side**2


class Place(NamedTuple):
    """Noisy layer with its channels and the pixels of each."""

    channels: int
    pixels: int


def list_convolutions() -> Iterator[Conv]:
    """Yield all convolutions of the network."""
    yield Conv(3, 64, 7, 112)
    inputs, before = 64, 56
    for blocks, width, side in STAGES:
        for block in range(blocks):
            yield Conv(inputs, width, 1, before)
            yield Conv(width, width, 3, side)
            yield Conv(width, 4 * width, 1, side)
            if block == 0:
                yield Conv(inputs, 4 * width, 1, side)
            inputs, before = 4 * width, side


def count_weights() -> int:
    """Return the number of parameters of the network."""
    return sum(conv.weights for conv in list_convolutions()) + (2048 + 1) * CLASSES


def count_products() -> int:
    """Return the number of multiplications of a forward pass of one image."""
    return sum(conv.products for conv in list_convolutions()) + 2048 * CLASSES


HEAD = [Place(CLASSES, 1)]
EVERYWHERE = [Place(4 * width, side**2) for blocks, width, side in STAGES for _ in range(blocks)] + HEAD


def count_sigmas(places: list[Place], granularity: str) -> int:
    """Return the number of learned sigmas."""
    sizes = {"neuron": lambda p: p.channels * p.pixels, "channel": lambda p: p.channels, "layer": lambda p: 1}
    return sum(sizes[granularity](place) for place in places)


def count_neurons(places: list[Place]) -> int:
    """Return the number n of noisy values of one image."""
    return count_sigmas(places, "neuron")


def count_bytes_moved(places: list[Place]) -> int:
    """Return the bytes that the noise moves per step and GPU, 3 B n b."""
    return 3 * BATCH * count_neurons(places) * BF16


def count_operations(places: list[Place]) -> int:
    """Return the operations of the noise per step and GPU, 2 B n a."""
    return 2 * BATCH * count_neurons(places) * OPERATIONS


def count_bytes_sent(numbers: int) -> float:
    """Return the bytes that each GPU sends per step to average float32 gradients in a ring, 8 (P - 1) / P each."""
    return 2 * (GPUS - 1) / GPUS * numbers * FP32


def describe_network() -> str:
    """Describe the cost of the network without noise."""
    work = 3 * 2 * BATCH * count_products()  # a backward pass computes twice as much as a forward one
    sending = count_bytes_sent(count_weights()) / NETWORK
    sent = format_bytes(count_bytes_sent(count_weights()))
    return (
        f"The network without noise has {count_weights() / 1e6:.2f} million weights and takes "
        f"{2 * count_products() / 1e9:.1f} GFLOP per image in a forward pass. A step on {BATCH} images takes "
        f"{work / 1e12:.1f} TFLOP, {work / MATRIX * 1e3:.0f} ms at the peak, and each GPU sends {sent}, "
        f"{sending * 1e3:.1f} ms. An epoch has {IMAGES / (GPUS * BATCH):.0f} steps."
    )


def list_rows() -> list[list[str]]:
    """Return the rows of the table, the header first."""
    header = ["noise", "one sigma per", "sigmas", "moved", "by memory", "by arithmetic", "stored", "sent"]
    found = [[*header, "sending", "of the weights'"]]
    for name, places, granularity in (
        ("classifier", HEAD, "neuron"),
        ("everywhere", EVERYWHERE, "neuron"),
        ("everywhere", EVERYWHERE, "channel"),
        ("everywhere", EVERYWHERE, "layer"),
    ):
        count = count_sigmas(places, granularity)
        memory, arithmetic = count_bytes_moved(places) / BANDWIDTH, count_operations(places) / VECTOR
        sending = count_bytes_sent(count) / NETWORK
        times = [f"{seconds * 1e3:.2g} ms" for seconds in (memory, arithmetic, sending)]
        moved, stored, exchanged = (
            format_bytes(bytes_) for bytes_ in (count_bytes_moved(places), 4 * count * FP32, count_bytes_sent(count))
        )
        found.append([name, granularity, f"{count:,}", moved, *times[:2], stored, exchanged, times[2]])
        found[-1].append(f"{count / count_weights() * 100:.2g} %")
    return found


def format_bytes(count: float) -> str:
    """Format bytes with a unit, in powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


if __name__ == "__main__":
    print(describe_network())
    for row in list_rows():
        print(" | ".join(row))
