"""Check that src/ cannot run code from files, unpack archives into folders, or download over plain http."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from noiseprop.data import cifar10, mnist, tiny_imagenet

SOURCE = Path(__file__).parents[1] / "src" / "noiseprop"
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "torch.jit.load", "torch.hub.load", "np.fromregex", "np.genfromtxt", "os.system", "os.popen"}
METHODS = {"extractall", "extract", "unpack_archive", "open_memmap", "read_pickle", "_extract_member"}
NETWORK = ("requests", "urllib.request", "http.client", "ftplib", "httpx", "aiohttp", "pooch")
DOWNLOADS = Path("data/download.py")


def find_unsafe(source: str, *, downloads: bool = False) -> Iterator[str]:
    """Yield forbidden operations of a module with their lines; one module may download."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if found := _describe_unsafe(node, docstrings, downloads=downloads):
            yield f"line {node.lineno}: {found}"


def _describe_unsafe(node: ast.AST, docstrings: set[int], *, downloads: bool) -> str | None:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        network = () if downloads else NETWORK
        found = [name for name in modules if name.split(".")[0] in MODULES or name.startswith(network)]
        return f"imports {found[0]}" if found else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
        return f"names {node.value!r}" if re.search(r"\b(http|ftp)://\w", node.value) else None
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    if called in BUILTINS | CALLS or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
        return f"calls {called}"
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        return "calls np.load without allow_pickle=False"
    return "starts a shell" if "shell" in given else None


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_source_has_no_forbidden_operation(path):
    assert list(find_unsafe(path.read_text(), downloads=path.relative_to(SOURCE) == DOWNLOADS)) == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("def f():\n    import shelve", "imports shelve"),
        ("x = torch.load(path, weights_only=True)", "calls torch.load"),
        ("eval('1')", "calls eval"),
        ("exec(code)", "calls exec"),
        ("np.load(path)", "calls np.load without"),
        ("np.load(path, mmap_mode='r', allow_pickle=True)", "calls np.load without"),
        ("archive.extractall(folder)", "calls archive.extractall"),
        ("zipfile.ZipFile(p).extract(name)", "calls zipfile.ZipFile(p).extract"),
        ("import requests", "imports requests"),
        ("from urllib.request import urlopen", "imports urllib.request"),
        ("URL = 'http://example.org/x'", "names 'http://example.org/x'"),
        ("subprocess.run(line, shell=True)", "starts a shell"),
    ],
)
def test_forbidden_operations_are_found(code, says):
    assert len(found := list(find_unsafe(code))) == 1
    assert says in found[0]


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "np.load(path, allow_pickle=False)",
        'def f():\n    """See http://example.org."""',
        "url.startswith('http://')",
        "from noiseprop.data.download import download_file",
    ],
)
def test_allowed_operations_are_not_reported(code):
    assert list(find_unsafe(code)) == []


@pytest.mark.parametrize(
    "remote", [*mnist.MNIST_REMOTES, cifar10.CIFAR10_ARCHIVE, tiny_imagenet.TINY_IMAGENET_ARCHIVE], ids=lambda r: r.path
)
def test_every_download_is_https_with_size_and_checksum(remote):
    assert remote.url.startswith("https://")
    assert re.fullmatch("[0-9a-f]{64}", remote.sha256)
    assert remote.size > 0
