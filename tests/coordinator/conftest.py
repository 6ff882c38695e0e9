"""What the tests of the coordinator share."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.checkpoints import RunDirectory, RunRecord
from coordinator.preparation import make_definition
from shared.config import RunConfig

for _support in (Path(__file__).parent, Path(__file__).parent / "support"):
    sys.path.insert(0, str(_support))

RUN = "run"
Begin = Callable[..., RunDirectory]


def run_config(**rounds: Any) -> RunConfig:
    """FedAvg on a small network; `rounds` over two rounds of two devices."""
    chosen = {"count": 2, "quorum": 2, "min_devices": 2, "deadline_s": 60.0, "personalize_deadline_s": 60.0} | rounds
    return RunConfig.model_validate(
        {
            "model": {"name": "digitscnn"},
            "algorithm": {"name": "fedavg"},
            "rounds": chosen,
            "transfer": {"stall_s": 0.2},
        }
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with everything that is made of the model; the template is a stand-in, for nobody opens it."""
    directory = RunDirectory(tmp_path_factory.mktemp("prepared"))
    directory.create(RunRecord(RUN, run_config()))
    make_definition(directory)
    directory.template.write_bytes(b"template")
    return directory.path


@pytest.fixture
def begin(prepared: Path, tmp_path: Path) -> Begin:
    """begin(name, **rounds): the folder of a run that is about to begin."""

    def make(name: str = "run-dir", **rounds: Any) -> RunDirectory:
        shutil.copytree(prepared, tmp_path / name)
        directory = RunDirectory(tmp_path / name)
        directory.create(RunRecord(RUN, run_config(**rounds)))
        return directory

    return make
