"""What was measured stands on the pages as it was measured; what is worked out on paper is of the known network."""

from pathlib import Path

import pytest
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


def script(name: str, monkeypatch):
    """A script of benchmarks/, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load_script(f"benchmarks/{name}.py")


@pytest.mark.parametrize("name", ["performance", "scale"])
def test_a_page_holds_the_tables_of_the_results(name, monkeypatch):
    tables = script("tables", monkeypatch)
    page = (ROOT / "docs" / f"{name}.md").read_text()
    assert tables.fill_page(page, tables.PAGES[name]) == page


def test_the_network_is_resnet50(monkeypatch):
    """Parameters as torchvision states them, and its 4.09 G multiplications."""
    imagenet = script("imagenet", monkeypatch)
    assert imagenet.count_weights() == 25_557_032
    assert imagenet.count_products() / 1e9 == pytest.approx(4.09, abs=0.005)
    assert imagenet.count_neurons(imagenet.EVERYWHERE) == 2_408_448 + 1_605_632 + 1_204_224 + 301_056 + 1000
    assert imagenet.count_sigmas(imagenet.EVERYWHERE, "channel") == 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048 + 1000
    assert imagenet.count_sigmas(imagenet.EVERYWHERE, "layer") == 17
