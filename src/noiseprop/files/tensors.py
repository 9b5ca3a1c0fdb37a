"""Write tensors to safetensors files."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from noiseprop.files.atomic import write_aside


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write contiguous tensors and text metadata atomically to a safetensors file.

    Raises:
        RunError: the file cannot be written; the previous file stays at `path`.
    """

    def write_file(aside: Path) -> None:
        try:
            save_file(tensors, aside, metadata)
        except SafetensorError as error:  # reported for a full disk
            raise OSError(0, str(error)) from error

    write_aside(path, write_file)
