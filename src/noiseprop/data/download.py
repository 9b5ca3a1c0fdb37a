"""Find data files in the user's folder, or download them once, verified, into the user's cache."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from noiseprop.errors import DataError
from noiseprop.files.untrusted import has_control_characters

DOWNLOAD_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces


@dataclass(frozen=True)
class RemoteFile:
    """Remote file with a known size and checksum.

    Attributes:
        path: path inside a data folder, with `/`.
        url: https address.
        sha256: checksum of the file, in hex.
        size: size in bytes; the server may not send more.
    """

    path: str
    url: str
    sha256: str
    size: int


def find_data_root(data_dir: Path | None) -> Path | None:
    """Return the folder named by argument or by $NOISEPROP_DATA, or None without either.

    Raises:
        DataError: the named folder does not exist.
    """
    named = data_dir if data_dir is not None else os.environ.get("NOISEPROP_DATA") or None
    if named is None:
        return None
    root = Path(named).expanduser()
    if has_control_characters(str(root)):
        raise DataError(f"data folder {str(root)!r} has control characters or bytes that are not UTF-8; rename it")
    if not root.is_dir():
        option = "--data-dir" if data_dir is not None else "$NOISEPROP_DATA"
        raise DataError(f"{root}: no such folder; set {option} to the folder that holds the data")
    return root


def find_cache_root() -> Path:
    """Return noiseprop's folder inside the user's cache ($XDG_CACHE_HOME on Linux)."""
    import pooch  # here, because it imports requests, which only a download needs

    return Path(pooch.os_cache("noiseprop"))


def obtain_file(remote: RemoteFile, root: Path | None) -> Path:
    """Return the path of a data file inside `root`, or in the cache after one download if `root` is None.

    Raises:
        DataError: the file is not in `root`, or cannot be downloaded.
    """
    if root is None:
        return download_file(remote, find_cache_root())
    path = root / remote.path
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; put {remote.url} there, or unset --data-dir and $NOISEPROP_DATA to download it"
        )
    return path


def download_file(remote: RemoteFile, cache: Path) -> Path:
    """Download a file over https into `cache` unless it is there, and verify its SHA-256 in both cases.

    The file is renamed into place once its checksum matches, so an interrupted download leaves nothing.

    Raises:
        DataError: the address is not https, the connection fails, the server sends more bytes than stated, the
            checksum does not match, or the disk is full.
    """
    import pooch
    from requests import RequestException

    if not remote.url.startswith("https://"):
        raise DataError(f"{remote.url}: downloads are made over https only; put the file in place by hand")
    target = cache / remote.path
    by_hand = f"download it by other means to DIR/{remote.path} and pass --data-dir DIR"
    downloader: Any = pooch.HTTPDownloader(  # Any: pooch annotates `downloader` differently from its classes
        progressbar=True,
        chunk_size=1 << 16,
        timeout=DOWNLOAD_TIMEOUT,
        headers={"Accept-Encoding": "identity"},
        hooks={"response": lambda response, **_: _check_response(response, remote)},
    )
    try:
        found = pooch.retrieve(
            remote.url, f"sha256:{remote.sha256}", fname=target.name, path=target.parent, downloader=downloader
        )
    except RequestException as error:
        raise DataError(f"{remote.url}: cannot be downloaded ({_shorten_reason(error)}); {by_hand}") from error
    except ValueError as error:  # pooch reports a wrong checksum so
        raise DataError(
            f"{remote.url}: the download does not have the checksum of the official file; {by_hand}"
        ) from error
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror or error}); free some space or {by_hand}"
        ) from error
    return Path(found)


def _check_response(response: Any, remote: RemoteFile) -> None:
    """Raise an error for a redirect that leaves https, and for a body of another or unknown length."""
    if response.is_redirect:
        onward = cast(str, response.headers["location"])
        if onward.startswith("http://"):
            raise DataError(
                f"{remote.url}: redirects to {onward}, which is not https; put {remote.path} in place by hand"
            )
        return
    length = cast(str, response.headers.get("content-length", ""))
    if response.ok and (not length.isdecimal() or int(length) != remote.size or "content-encoding" in response.headers):
        raise DataError(
            f"{remote.url}: the server offers {length or 'an unstated number of'} bytes, the official file has "
            f"{remote.size}; put {remote.path} in place by hand"
        )


def _shorten_reason(error: Exception) -> str:
    """Return the innermost reason of a chain of network errors on one line."""
    reason = getattr(error.args[0], "reason", None) if error.args else None  # urllib3's, within requests' own
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", " ".join(str(reason or error).split()))
    return text[:200] or type(error).__name__
