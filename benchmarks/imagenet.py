"""What noise would cost a ResNet50 on ImageNet over 64 GPUs, on paper: the arithmetic behind docs/scale.md.

The network is torchvision's ResNet50 (stride in the 3 x 3 convolutions), counted here layer by layer. The GPU is an
A100 by its data sheet, at its peaks; nothing of this was measured.
"""

from collections.abc import Iterator
from typing import NamedTuple

GPUS, BATCH, IMAGES = 64, 256, 1_281_167  # BATCH: images a GPU and step
BANDWIDTH = 2.0e12  # bytes a second between a GPU and its memory
MATRIX = 312e12  # bfloat16 operations a second in its matrix units
VECTOR = 19.5e12  # 32-bit operations a second in its other units, integer and floating together
NETWORK = 25e9  # bytes a second from each GPU to the others, 200 Gbit/s
BF16, FP32 = 2, 4  # bytes
OPERATIONS = 35  # a normal: 20 on whole numbers and 15 on floats, as compiled for AVX-512

STAGES = ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))  # blocks, width, side of their maps
CLASSES = 1000


class Conv(NamedTuple):
    """A convolution without bias, with the batch norm behind it."""

    inputs: int
    outputs: int
    kernel: int
    side: int  # of the maps it puts out

    @property
    def weights(self) -> int:
        """Parameters, the batch norm's included."""
        return self.inputs * self.outputs * self.kernel**2 + 2 * self.outputs

    @property
    def products(self) -> int:
        """Multiplications an image."""
        return self.inputs * self.outputs * self.kernel**2 * self.side**2


class Place(NamedTuple):
    """A noisy layer: its channels and the pixels of each."""

    channels: int
    pixels: int


def convolutions() -> Iterator[Conv]:
    """All of the network's."""
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


def weights() -> int:
    """Parameters of the network."""
    return sum(conv.weights for conv in convolutions()) + (2048 + 1) * CLASSES


def products() -> int:
    """Multiplications of a forward pass of one image."""
    return sum(conv.products for conv in convolutions()) + 2048 * CLASSES


HEAD = [Place(CLASSES, 1)]
EVERYWHERE = [Place(4 * width, side**2) for blocks, width, side in STAGES for _ in range(blocks)] + HEAD


def sigmas(places: list[Place], granularity: str) -> int:
    """Numbers to learn."""
    sizes = {"neuron": lambda p: p.channels * p.pixels, "channel": lambda p: p.channels, "layer": lambda p: 1}
    return sum(sizes[granularity](place) for place in places)


def neurons(places: list[Place]) -> int:
    """Noisy values of one image, n."""
    return sigmas(places, "neuron")


def traffic(places: list[Place]) -> int:
    """Bytes that the noise moves a step on each GPU, 3 B n b."""
    return 3 * BATCH * neurons(places) * BF16


def operations(places: list[Place]) -> int:
    """Operations of the noise a step on each GPU, 2 B n a."""
    return 2 * BATCH * neurons(places) * OPERATIONS


def sent(numbers: int) -> float:
    """Bytes that each GPU sends a step to average float32 gradients in a ring, 2 (P - 1) / P times 4 bytes each."""
    return 2 * (GPUS - 1) / GPUS * numbers * FP32


def network() -> str:
    """The network's own price, as a sentence."""
    work = 3 * 2 * BATCH * products()  # a backward pass computes twice as much as a forward one
    sending = sent(weights()) / NETWORK
    return (
        f"The network itself: {weights() / 1e6:.2f} million weights and {2 * products() / 1e9:.1f} GFLOP a forward "
        f"pass and image; a step on {BATCH} images takes {work / 1e12:.1f} TFLOP, {work / MATRIX * 1e3:.0f} ms at the "
        f"peak, and each GPU sends {amount(sent(weights()))}, {sending * 1e3:.1f} ms. "
        f"An epoch has {IMAGES / (GPUS * BATCH):.0f} steps."
    )


def rows() -> list[list[str]]:
    """The table: header first."""
    header = ["noise", "one sigma per", "sigmas", "moved", "by memory", "by arithmetic", "stored", "sent"]
    found = [[*header, "sending", "of the weights'"]]
    for name, places, granularity in (
        ("classifier", HEAD, "neuron"),
        ("everywhere", EVERYWHERE, "neuron"),
        ("everywhere", EVERYWHERE, "channel"),
        ("everywhere", EVERYWHERE, "layer"),
    ):
        count = sigmas(places, granularity)
        memory, arithmetic = traffic(places) / BANDWIDTH, operations(places) / VECTOR
        sending = sent(count) / NETWORK
        times = [f"{seconds * 1e3:.2g} ms" for seconds in (memory, arithmetic, sending)]
        moved, kept, going = (amount(bytes_) for bytes_ in (traffic(places), 4 * count * FP32, sent(count)))
        found.append([name, granularity, f"{count:,}", moved, *times[:2], kept, going, times[2]])
        found[-1].append(f"{count / weights() * 100:.2g} %")
    return found


def amount(count: float) -> str:
    """Bytes for the eye, in powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


if __name__ == "__main__":
    print(network())
    for row in rows():
        print(" | ".join(row))
