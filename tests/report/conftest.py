from pathlib import Path

import pytest
import torch
from tests.report.made_up import DOUBT, evaluation, make_run, page


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models here are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> list[Path]:
    """Two seeds of MLP, an MLPN with a warning, and a CNN-AN: runs that tests look at and none changes."""
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "mlp-0", "MLP", 0),
        make_run(root / "mlp-1", "MLP", 1),
        make_run(root / "mlpn-0", "MLPN", 0, judged=evaluation("MLPN", 0, findings=(DOUBT,))),
        make_run(root / "cnn-an", "CNN-AN", 0),
    ]


@pytest.fixture(scope="session")
def thirty(tmp_path_factory) -> list[Path]:
    """Runs of ten kinds of networks, three seeds each, of thirty epochs."""
    root = tmp_path_factory.mktemp("thirty")
    kinds = [(name, 30) for name in ("MLP", "MLP+", "MLPN", "CNN", "CNN-MLP+", "CNN-A+", "CNN-MLPN", "CNN-AN")]
    return [
        make_run(
            root / f"{name}-{epochs}-{seed}",
            name,
            seed,
            epochs=epochs,
            judged=evaluation(name, seed, findings=(DOUBT,)),
        )
        for name, epochs in [*kinds, ("CNN-AN", 31), ("MLPN", 31)]
        for seed in range(3)
    ]


@pytest.fixture(scope="session")
def grid(thirty, tmp_path_factory) -> Path:
    """Their report."""
    path = tmp_path_factory.mktemp("grid") / "grid.html"
    path.write_text(page(*thirty))
    return path
