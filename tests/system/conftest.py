"""A whole fleet as real processes over a real broker; nothing of it outlives its test."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

for _support in ("system/support", "broker/support", "coordinator"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _support))

from processes import System  # noqa: E402


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """Processes to start; whatever is left of them at the end is killed."""
    system = System(tmp_path)
    yield system
    await system.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Many processes of seconds each: where the machine is busy, they take minutes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(500))
