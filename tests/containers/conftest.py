"""A fleet in real containers, as docs/deploy.md starts it. `scripts/test --containers` runs this; nothing else does."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

ASKED = "TALARIA_CONTAINERS"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return None if ASKED in os.environ else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))
