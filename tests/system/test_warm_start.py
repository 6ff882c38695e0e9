"""From FedAvg to LG-FedAvg: the model of one run is where the next one starts, in memory, with both programs."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.cli import cli
from coordinator.preparation import InProcess
from coordinator.server import Coordinator
from edge_agent.agent import Agent
from edge_agent.health import Reading
from edge_agent.job import MEMORY, Job, Outcome
from edge_agent.worker import attempt
from shared.codec import decode_payload
from shared.config import AgentConfig, RunConfig
from shared.config_data import DataSettings, PartitionSettings
from shared.memory_link import MemoryBroker
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Tensors

DEVICES = ("phone", "pi")


class WithoutTemplate(InProcess):
    """Devices export nothing: that takes seconds, and is tested elsewhere."""

    async def template(self) -> None:
        return None


async def work(job: Job) -> Outcome:
    return attempt(job)


async def run(folder: Path, **settings: Any) -> None:
    """A run of two devices with digits of their own, to its end."""
    broker = MemoryBroker()
    config = RunConfig.model_validate({"rounds": {"count": 1, "quorum": 2, "min_devices": 2}, **settings})
    coordinator = Coordinator(config, broker.link, run_dir=folder, on_event=lambda event: None, prepare=WithoutTemplate)
    async with asyncio.TaskGroup() as tasks:
        for index, name in enumerate(DEVICES):
            data = DataSettings(partition=PartitionSettings(kind="iid", devices=8, index=index))
            agent = AgentConfig(device=name, state_dir=folder / name, data=data)
            tasks.create_task(Agent(agent, broker.link, work, once=True, look=Reading).run())
        tasks.create_task(coordinator.run())


def tensors_in(path: Path) -> Tensors:
    data = path.read_bytes()
    return decode_payload(data, limit=len(data)).subnet.tensors


async def test_local_layers_begin_with_what_fedavg_has_trained(tmp_path: Path) -> None:
    """In the second run nothing is trained, so devices end with what they began with."""
    await run(tmp_path / "first", algorithm={"name": "fedavg", "epochs": 1})
    trained = tmp_path / "fedavg.payload"
    arguments = ["export", str(tmp_path / "first"), "--format", "payload", "-o", str(trained)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0

    await run(
        tmp_path / "second",
        model={"initial": str(trained)},
        algorithm={"name": "lg-fedavg", "epochs": 0, "finetune_epochs": 0},
    )
    drawn, wanted = state_tensors(build_model("digitscnn", {}, seed=0)), tensors_in(trained)
    shared = tensors_in(tmp_path / "second/globals/00002.payload")
    assert {"12.weight", "14.weight"} <= shared.keys()
    assert "0.weight" not in shared
    for name in DEVICES:
        (path,) = (tmp_path / "second" / name).glob(f"generations/*/{MEMORY}")
        memory = tensors_in(path)
        local = {key.removeprefix("local/"): array for key, array in memory.items() if key.startswith("local/")}
        assert local.keys() == wanted.keys() - shared.keys()
        for key, array in (local | shared).items():
            np.testing.assert_array_equal(array, wanted[key], err_msg=key)
        assert not np.array_equal(local["0.weight"], drawn["0.weight"])


@pytest.mark.parametrize("algorithm", ["fedbabu", "ditto", "hermes"])
async def test_any_algorithm_starts_from_it(tmp_path: Path, algorithm: str) -> None:
    """With nothing trained, the global model of the run is still the one that it was given."""
    await run(tmp_path / "first", algorithm={"name": "fedavg", "epochs": 1})
    given = tmp_path / "first/globals/00002.payload"
    await run(tmp_path / "second", model={"initial": str(given)}, algorithm={"name": algorithm, "epochs": 0})
    exported = tmp_path / "second.payload"
    arguments = ["export", str(tmp_path / "second"), "--format", "payload", "-o", str(exported)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    one, two = tensors_in(given), tensors_in(exported)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-6, atol=1e-7, err_msg=name)
