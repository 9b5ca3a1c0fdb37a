"""A training's epochs for TensorBoard: what metrics.jsonl tells, and a histogram of every layer's sigma."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.training.loop import EpochEnd
from noiseprop.training.metrics import Epoch


@contextmanager
def tensorboard(folder: Path | None) -> Generator[EpochEnd | None]:
    """What to give `train` as `at_epoch_end`, so that it writes event files to a folder; None if there is no folder.

    Tags are the names in metrics.jsonl ("train_loss", "sigma/fc1/mean"), and "sigma/fc1" for the histogram of |sigma|.
    A run that goes on into the same folder hides what an earlier one wrote of the same epochs.

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
        for field in fields(epoch):
            if field.name not in ("epoch", "sigma"):
                writer.add_scalar(field.name, getattr(epoch, field.name), epoch.epoch)
        for path, layer in noise_layers(model).items():
            tag = f"sigma/{path.removesuffix('.noise')}"
            writer.add_histogram(tag, layer.sigma.detach().abs().float().cpu(), epoch.epoch)
            for name, value in epoch.sigma[path].items():
                writer.add_scalar(f"{tag}/{name}", value, epoch.epoch)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
