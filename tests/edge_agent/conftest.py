"""What the tests of the agent share."""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.job import Job
from shared.config import AgentConfig
from shared.config_data import DataSettings
from shared.memory_link import MemoryBroker
from shared.messages import Plan

sys.path.insert(0, str(Path(__file__).parent / "support"))

from echo import Echo
from scripted import ScriptedCoordinator, make_profile, make_task


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job for `entries.unruly`, which does what `do` says."""
    count = 0

    def make(do: str, *, deadline_s: float = 60.0, memory_mib: int = 256, **options: Any) -> Job:
        nonlocal count
        count += 1
        out = tmp_path / f"out{count}"
        out.mkdir()
        return Job(
            task=make_task(plan=Plan(model="smallcnn", model_options={"do": do, **options}, algorithm="fedavg")),
            device="device",
            payload=tmp_path / "payload",
            memory=None,
            out=out,
            data=DataSettings(),
            profile=make_profile(memory_mib=memory_mib),
            threads=1,
            deadline_s=deadline_s,
        )

    return make


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[ScriptedCoordinator]:
    coordinator = ScriptedCoordinator(MemoryBroker(), tmp_path)
    await coordinator.open()
    yield coordinator
    await coordinator.close()


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """A device whose packets carry 1 KiB of a payload."""
    profile = tmp_path / "small.toml"
    profile.write_text(
        'id = "small"\ntitle = "small packets"\ncores = 1\nmemory_mib = 1024\n[link]\nmax_packet = 1536\n'
    )
    return AgentConfig(device="device", profile=str(profile), state_dir=tmp_path / "state", stall_s=0.1)


@pytest.fixture
async def echo() -> Echo:
    return Echo()
