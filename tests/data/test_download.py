"""Downloads from a server on loopback, over https with a self-made certificate."""

import dataclasses
import gzip
import hashlib
import http.server
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.data.test_cifar10 import official_members, tar_of
from tests.data.test_tiny_imagenet import small_archive, write_zip

from noiseprop.data import cifar10, load, mnist, tiny_imagenet
from noiseprop.data.download import RemoteFile, download_file
from noiseprop.errors import DataError

BODY = b"official file, " * 20_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from the server's `routes`: path -> (status, headers, body)."""

    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers, body = self.server.routes.get(self.path, (404, {"Content-Length": "0"}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """Make a certificate for localhost and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test server's certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def server(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    monkeypatch.setenv("NO_PROXY", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        server.routes, server.asked = {}, []
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = f"https://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def offer(server, path: str, body: bytes, **headers: str) -> RemoteFile:
    """Serve `body` at mirror/`path`."""
    server.routes[f"/mirror/{path}"] = (200, {"Content-Length": str(len(body)), **headers}, body)
    return RemoteFile(path, f"{server.url}/mirror/{path}", hashlib.sha256(body).hexdigest(), len(body))


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_mnist_is_downloaded_once(server, own_cache, mnist_packed, monkeypatch, capfd):
    remotes = [offer(server, f"mnist/{name}", packed) for name, packed in mnist_packed.items()]
    monkeypatch.setattr(mnist, "MNIST_REMOTES", tuple(remotes))
    first = load("mnist")
    assert len(first) == 50
    assert len(server.asked) == 4
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert sorted(path.name for path in leftovers(own_cache)) == sorted(mnist_packed)
    assert load("mnist").labels.tolist() == first.labels.tolist()
    assert len(server.asked) == 4


def packed(name: str, tmp_path: Path) -> bytes:
    """Make a small archive in the form of the official one."""
    if name == "tiny-imagenet":
        return write_zip(tmp_path / "made", small_archive()).read_bytes()
    rows = {file: np.zeros((2, cifar10.ROW_BYTES), np.uint8) for file in cifar10.OFFICIAL_DIGESTS}
    return gzip.compress(tar_of(*official_members(rows)))


ARCHIVES = pytest.mark.parametrize(
    ("name", "module", "constant", "images"),
    [("cifar10", cifar10, "CIFAR10_ARCHIVE", 12), ("tiny-imagenet", tiny_imagenet, "TINY_IMAGENET_ARCHIVE", 17)],
)


@ARCHIVES
def test_an_archive_is_downloaded_once(server, own_cache, tmp_path, monkeypatch, name, module, constant, images):
    remote = offer(server, getattr(module, constant).path, packed(name, tmp_path))
    monkeypatch.setattr(module, constant, remote)
    for _ in range(2):
        dataset = load(name)
        assert len(dataset) == images
        assert f" from {own_cache / remote.path}, " in dataset.source
    assert server.asked == [f"/mirror/{remote.path}"]


@ARCHIVES
def test_an_archive_that_is_not_the_official_one_is_refused(
    server, own_cache, tmp_path, monkeypatch, name, module, constant, images
):
    offered = offer(server, getattr(module, constant).path, packed(name, tmp_path))
    official = getattr(module, constant)
    monkeypatch.setattr(module, constant, dataclasses.replace(offered, sha256=official.sha256))
    with pytest.raises(DataError, match="does not have the checksum of the official file; download it by other means"):
        load(name)
    assert server.asked == [f"/mirror/{getattr(module, constant).path}"]
    assert leftovers(own_cache) == []


def test_file_damaged_in_the_cache_is_downloaded_again(server, own_cache):
    remote = offer(server, "a/file", BODY)
    download_file(remote, own_cache).write_bytes(b"damaged")
    assert download_file(remote, own_cache).read_bytes() == BODY
    assert len(server.asked) == 2


def test_wrong_checksum_leaves_nothing(server, own_cache):
    remote = dataclasses.replace(offer(server, "file", BODY), sha256="0" * 64)
    with pytest.raises(
        DataError, match="does not have the checksum of the official file; download it by other means to DIR/"
    ):
        download_file(remote, own_cache)
    assert leftovers(own_cache) == []


def test_wrong_checksum_keeps_the_file_that_was_there(server, own_cache):
    target = own_cache / "file"
    own_cache.mkdir(parents=True)
    target.write_bytes(b"old")
    with pytest.raises(DataError, match="does not have the checksum"):
        download_file(dataclasses.replace(offer(server, "file", BODY), sha256="0" * 64), own_cache)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((404, {"Content-Length": "0"}, b""), "cannot be downloaded .404"),
        ((500, {"Content-Length": "0"}, b""), "cannot be downloaded .500"),
        ((200, {"Content-Length": str(len(BODY))}, BODY[:-1]), "cannot be downloaded .*IncompleteRead"),
        (
            (200, {"Content-Length": str(len(BODY) + 1)}, BODY + b"x"),
            f"offers {len(BODY) + 1} bytes, .* has {len(BODY)}",
        ),
        ((200, {}, BODY), "offers an unstated number of bytes"),
        ((200, {"Content-Length": str(len(BODY)), "Content-Encoding": "gzip"}, BODY), "the server offers"),
        ((302, {"Location": "http://localhost/file", "Content-Length": "0"}, b""), "redirects to http:.*not https"),
        (
            (302, {"Location": "/mirror/file", "Content-Length": "0"}, b""),
            "cannot be downloaded .Exceeded 30 redirects",
        ),
    ],
)
def test_bad_answer_is_one_sentence_and_leaves_nothing(server, own_cache, answer, sentence):
    remote = offer(server, "file", BODY)
    server.routes["/mirror/file"] = answer
    with pytest.raises(DataError, match=sentence):
        download_file(remote, own_cache)
    assert leftovers(own_cache) == []


def test_redirect_that_stays_on_https_is_followed(server, own_cache):
    remote = offer(server, "file", BODY)
    server.routes["/old"] = (302, {"Location": "/mirror/file", "Content-Length": "0"}, b"")
    assert download_file(dataclasses.replace(remote, url=f"{server.url}/old"), own_cache).read_bytes() == BODY


def test_unknown_certificate_is_refused(server, own_cache, monkeypatch):
    remote = offer(server, "file", BODY)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(DataError, match=r"cannot be downloaded .*certificate"):
        download_file(remote, own_cache)
    assert server.asked == []


def test_plain_http_is_refused_before_asking(own_cache):
    with pytest.raises(DataError, match="over https only"):
        download_file(RemoteFile("file", "http://localhost:1/file", "0" * 64, 1), own_cache)


def test_no_connection_is_one_sentence(own_cache, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    with pytest.raises(DataError, match=r"cannot be downloaded .*; download it by other means to DIR/file") as caught:
        download_file(RemoteFile("file", "https://localhost:1/file", "0" * 64, 1), own_cache)
    assert "\n" not in str(caught.value)
    assert "HTTPSConnection" not in str(caught.value)  # the reason, without the classes around it
    assert "Connection refused" in str(caught.value)


def test_full_disk_leaves_nothing(server, own_cache, files_limited_to):
    remote = offer(server, "file", BODY)
    with (
        files_limited_to(len(BODY) // 2),
        pytest.raises(DataError, match=r"file: cannot be written \(File too large\)"),
    ):
        download_file(remote, own_cache)
    assert leftovers(own_cache) == []


def test_cache_that_cannot_be_created_is_one_sentence(server, own_cache):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        download_file(offer(server, "file", BODY), own_cache)


def test_official_files_are_on_https_with_their_checksums():
    for remote in (*mnist.MNIST_REMOTES, cifar10.CIFAR10_ARCHIVE, tiny_imagenet.TINY_IMAGENET_ARCHIVE):
        assert remote.url.startswith("https://")
        assert remote.url.endswith(f"/{Path(remote.path).name}")
        assert len(bytes.fromhex(remote.sha256)) == 32


@pytest.mark.parametrize(
    ("remote", "url", "size", "sha256"),
    [
        (
            cifar10.CIFAR10_ARCHIVE,  # MD5 c32a1d4ab5d03f1284b67883e8d87530
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        (
            tiny_imagenet.TINY_IMAGENET_ARCHIVE,  # MD5 90528d7ca1a48142e341f4ef8d21d0de
            "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
            248_100_043,
            "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        ),
    ],
    ids=["cifar10", "tiny-imagenet"],
)
def test_archives_are_those_whose_md5_is_published(remote, url, size, sha256):
    """Sizes and SHA-256 as others have found them of archives with that MD5."""
    assert remote == RemoteFile(url.rsplit("/", 1)[1], url, sha256, size)
