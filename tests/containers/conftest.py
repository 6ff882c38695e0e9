"""A fleet in real containers, as docs/deploy.md starts it. Nothing runs this but `scripts/test --containers`, and
`scripts/test --arm`, which runs test_arm.py."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

ASKED = "TALARIA_CONTAINERS"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    tier = "arm" if collection_path.name == "test_arm.py" else "containers"
    return None if collection_path.is_dir() or os.environ.get(ASKED) == tier else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))
