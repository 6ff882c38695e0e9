"""What every test shares. Without the data sets, only the tests marked `data` are left out, and that is said."""

import os
from pathlib import Path

import pytest

# One thread per process: the suite runs in parallel, and results must not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets."""
    return Path(os.environ["TALARIA_DATA"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "TALARIA_DATA" in os.environ:
        return
    left_out = [item for item in items if item.get_closest_marker("data")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_report_header() -> str:
    return f"TALARIA_DATA: {os.environ.get('TALARIA_DATA', 'not set, so tests marked `data` are deselected')}"
