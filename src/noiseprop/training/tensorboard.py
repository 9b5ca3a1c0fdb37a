"""TensorBoard events of a training: the numbers of metrics.jsonl, and a histogram of sigma per layer."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import msgspec
from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.training.loop import EpochCallback
from noiseprop.training.metrics import Epoch


@contextmanager
def log_to_tensorboard(folder: Path | None) -> Generator[EpochCallback | None]:
    """Provide a callback for `at_epoch_end` of `train` that writes event files to a folder; None without a folder.

    Tags are the names in metrics.jsonl ("train_loss", "sigma/fc1/mean"), and "sigma/fc1" for the histogram of |sigma|.
    A resumed run replaces earlier events of the same epochs.

    Raises:
        InputError: TensorBoard is not installed.
    """
    if folder is None:
        yield None
        return
    if find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install noiseprop[tensorboard]")
    from torch.utils.tensorboard.writer import SummaryWriter  # it takes seconds to import

    writer: SummaryWriter | None = None

    def write(epoch: Epoch, model: nn.Module) -> None:
        nonlocal writer
        if writer is None:
            writer = SummaryWriter(str(folder), purge_step=epoch.epoch)
        for name, value in msgspec.structs.asdict(epoch).items():
            if name not in ("epoch", "sigma"):
                writer.add_scalar(name, value, epoch.epoch)
        for path, layer in noise_layers(model).items():
            tag = f"sigma/{path.removesuffix('.noise')}"
            writer.add_histogram(tag, layer.sigma.detach().abs().float().cpu(), epoch.epoch)
            for name, value in msgspec.structs.asdict(epoch.sigma[path]).items():
                writer.add_scalar(f"{tag}/{name}", value, epoch.epoch)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
