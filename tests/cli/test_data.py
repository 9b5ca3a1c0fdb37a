import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from noiseprop.cli import main
from noiseprop.data import NAMES, cifar10, mnist
from noiseprop.data import inventory as holdings
from noiseprop.data.download import RemoteFile


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NOISEPROP_DATA", raising=False)


def write_mnist(folder: Path) -> None:
    """Ten training and ten test digits of nothing, in MNIST's form."""
    folder.mkdir()
    for part in ("train", "t10k"):
        images = struct.pack(">4I", 0x803, 10, 28, 28) + bytes(10 * 28 * 28)
        labels = struct.pack(">2I", 0x801, 10) + bytes(range(10))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def listed(capsys, *arguments: str) -> dict[str, dict]:
    capsys.readouterr()
    main(["data", *arguments, "--json"])
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_the_list_says_what_is_here_and_how_to_get_the_rest(capsys, tmp_path):
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line[0] != " "] == list(NAMES)
    assert "noiseprop data mnist --fetch downloads 12 MB" in said
    rows = listed(capsys)
    assert {name: row["state"] for name, row in rows.items()} == {
        "mnist": "missing",
        "mnist-5k": "here",
        "cifar10": "missing",
        "tiny-imagenet": "missing",
    }
    assert rows["mnist"]["where"] == str(tmp_path / "cache" / "noiseprop" / "mnist")
    assert rows["mnist-5k"]["bytes"] > 1e6


def test_verify_reads_and_tells_what_it_found(capsys):
    rows = listed(capsys, "mnist-5k", "--verify")
    assert rows["mnist-5k"]["state"] == "verified"
    assert (rows["mnist-5k"]["images"], rows["mnist-5k"]["classes"]) == (5000, 10)


def test_damaged_and_unofficial_files_are_told_and_the_damaged_end_with_1(capsys, tmp_path):
    write_mnist(tmp_path / "mnist")
    arguments = ["mnist", "--verify", "--data-dir", str(tmp_path)]
    assert listed(capsys, *arguments)["mnist"]["state"] == "unofficial"
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3])
    assert listed(capsys, *arguments)["mnist"]["state"] == "damaged"
    assert main(["data", *arguments]) == 1
    said = capsys.readouterr()
    assert "mnist cannot be used; see above" in said.err
    assert "ends before its gzip stream does" in said.out
    path.unlink()
    row = listed(capsys, *arguments)["mnist"]
    assert (row["state"], row["bytes"] > 0) == ("missing", True)


def test_fetch_downloads_what_is_missing_where_load_looks_for_it(capsys, tmp_path, monkeypatch):
    content = b"some file"
    remote = RemoteFile("mnist/x.gz", "https://example.org/x.gz", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(holdings._REMOTES, "mnist", (remote,))
    asked = []

    def fetch(wanted, root):
        asked.append((wanted, root))
        (root / "mnist").mkdir(parents=True)
        (root / wanted.path).write_bytes(content)

    monkeypatch.setattr(holdings, "download_file", fetch)
    assert listed(capsys, "mnist", "--fetch")["mnist"]["state"] == "damaged"  # for it is no MNIST
    assert asked == [(remote, tmp_path / "cache" / "noiseprop")]
    assert holdings.find_files("mnist").is_complete
    listed(capsys, "mnist", "--fetch")
    assert len(asked) == 1
    (tmp_path / "there").mkdir()
    listed(capsys, "mnist", "--fetch", "--data-dir", str(tmp_path / "there"))
    assert asked[1] == (remote, tmp_path / "there")


def test_an_unpacked_folder_must_hold_all_of_its_files(capsys, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    arguments = ["cifar10", "--data-dir", str(tmp_path)]
    assert main(["data", *arguments, "--fetch"]) == 1
    assert "has no data_batch_1.bin, data_batch_2.bin," in " ".join(capsys.readouterr().out.split())
    for name in list(cifar10.OFFICIAL_DIGESTS)[:-1]:
        (folder / name).write_bytes(b"0")
    row = listed(capsys, *arguments)["cifar10"]
    assert row["state"] == "damaged"
    assert row["note"] == f"{folder}: has no test_batch.bin; put back the whole folder, or move it away"
    (folder / "test_batch.bin").write_bytes(b"0")
    assert listed(capsys, *arguments)["cifar10"]["state"] == "here"


def test_the_files_of_the_list_are_those_that_are_read():
    assert holdings._REMOTES["mnist"] is mnist.MNIST_REMOTES
    assert set(holdings._REMOTES) | {"mnist-5k"} == set(NAMES)


def test_data_of_one_s_own_are_read_and_described(capsys, tmp_path):
    np.savez(tmp_path / "own.npz", x=np.zeros((6, 4, 4), np.uint8), y=np.arange(6) % 2)
    row = listed(capsys, str(tmp_path / "own.npz"))[str(tmp_path / "own.npz")]
    assert (row["state"], row["images"], row["shape"], row["classes"]) == ("readable", 6, [1, 4, 4], 2)
    (tmp_path / "own.npz").write_bytes(b"PK")
    assert main(["data", str(tmp_path / "own.npz")]) == 1
    assert "not a valid zip archive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mnits"], "'mnits' is not a data set; choose one of mnist, mnist-5k, cifar10, tiny-imagenet"),
        (["--fetch"], "--fetch requires the names of data sets; choose from mnist, "),
        (["mnist", "--data-dir", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
    ],
)
def test_bad_input_is_one_sentence(arguments, says, capsys):
    assert main(["data", *arguments]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
