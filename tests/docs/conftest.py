from collections.abc import Callable
from typing import Any

import pytest
from tests.docs.pages import PAGES, run_page


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Runs a page once, whoever asks; the names that its code has made."""
    done: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if name not in done:
            done[name] = run_page(PAGES[name], tmp_path_factory.mktemp(name.removesuffix(".md")))
        return done[name]

    return run
