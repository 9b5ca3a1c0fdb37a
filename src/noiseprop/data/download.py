"""Where a data file comes from: the user's folder, or one checked download into the user's cache."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from noiseprop.errors import DataError

TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces


@dataclass(frozen=True)
class Remote:
    """A file on the net that is known to the last byte.

    Attributes:
        path: where the file lies inside a data folder, with `/`.
        url: an https address.
        sha256: of the file, in hex.
        size: in bytes; the server may not send more.
    """

    path: str
    url: str
    sha256: str
    size: int


def data_root(data_dir: Path | None) -> Path | None:
    """The folder that the user named, by argument or else by $NOISEPROP_DATA; None where neither is there.

    Raises:
        DataError: the named folder does not exist.
    """
    named = data_dir if data_dir is not None else os.environ.get("NOISEPROP_DATA") or None
    if named is None:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        said = "--data-dir" if data_dir is not None else "$NOISEPROP_DATA"
        raise DataError(f"{root}: no such folder; let {said} name the folder that holds the data")
    return root


def cache_root() -> Path:
    """The folder for what noiseprop downloads and makes, inside the user's cache ($XDG_CACHE_HOME on Linux)."""
    import pooch  # here, because it brings requests in and only a download needs it

    return Path(pooch.os_cache("noiseprop"))


def obtain(remote: Remote, root: Path | None) -> Path:
    """The path of a data file: inside `root` where the user named one, else downloaded once.

    Raises:
        DataError: the file is not in `root`, or cannot be downloaded.
    """
    if root is None:
        return fetch(remote, cache_root())
    path = root / remote.path
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; put {remote.url} there, or unset --data-dir and $NOISEPROP_DATA to download it"
        )
    return path


def fetch(remote: Remote, cache: Path) -> Path:
    """Download a file over https into `cache` unless it is there, and check its SHA-256 either way.

    The file is written aside and moved into place once its checksum holds, so an interrupted download leaves nothing.

    Raises:
        DataError: no https address, no connection, more bytes than stated, a wrong checksum or no space.
    """
    import pooch
    from requests import RequestException

    if not remote.url.startswith("https://"):
        raise DataError(f"{remote.url}: downloads are made over https only; put the file in place by hand")
    target = cache / remote.path
    by_hand = f"download it by other means to DIR/{remote.path} and pass --data-dir DIR"
    downloader: Any = pooch.HTTPDownloader(  # Any: pooch's own annotation of `downloader` does not fit its classes
        progressbar=True,
        chunk_size=1 << 16,
        timeout=TIMEOUT,
        headers={"Accept-Encoding": "identity"},
        hooks={"response": lambda response, **_: _check_response(response, remote)},
    )
    try:
        found = pooch.retrieve(
            remote.url, f"sha256:{remote.sha256}", fname=target.name, path=target.parent, downloader=downloader
        )
    except RequestException as error:
        raise DataError(f"{remote.url}: cannot be downloaded ({_brief(error)}); {by_hand}") from error
    except ValueError as error:  # pooch's word for a wrong checksum
        raise DataError(f"{remote.url}: what came has not the checksum of the official file; {by_hand}") from error
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror or error}); free some space or {by_hand}"
        ) from error
    return Path(found)


def _check_response(response: Any, remote: Remote) -> None:
    """Refuse a way that leaves https, and bodies without a length or with more than the official file's."""
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


def _brief(error: Exception) -> str:
    """The innermost reason of a chain of network errors, on one line."""
    reason = getattr(error.args[0], "reason", None) if error.args else None  # urllib3's, within requests' own
    said = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", " ".join(str(reason or error).split()))
    return said[:200] or type(error).__name__
