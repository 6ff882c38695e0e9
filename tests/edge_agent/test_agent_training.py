"""The agent with its real trainer: processes, torch, scikit-learn's digits."""

import asyncio
from pathlib import Path

import psutil
import pytest
from scripted import ScriptedCoordinator

from edge_agent.agent import Agent
from edge_agent.health import Reading
from shared.codec import decode_payload, encode_payload
from shared.config import AgentConfig
from shared.messages import Failure, Offer, Plan, Task
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Subnet

PLAN = Plan(model="digitscnn", algorithm="fedavg", hyperparameters={"epochs": 1})


async def first_task(coordinator: ScriptedCoordinator) -> Task:
    tensors = state_tensors(build_model("digitscnn", {}, seed=0))
    payload = await coordinator.publish(encode_payload(Subnet(tensors), run="run", round=1))
    return Task(run="run", action="train", round=1, plan=PLAN, payload=payload, time_left_s=120.0)


@pytest.mark.parametrize("keep_warm", [True, False])
async def test_it_trains(tmp_path: Path, coordinator: ScriptedCoordinator, keep_warm: bool) -> None:
    config = AgentConfig(device="device", profile=profile(tmp_path, 512, keep_warm), state_dir=tmp_path / "state")
    agent = Agent(config, coordinator.broker.link, look=Reading)
    serving = asyncio.create_task(agent.run())
    task = await first_task(coordinator)
    await coordinator.ask(task)
    offer = await coordinator.hears(Offer, timeout_s=100)
    sent = decode_payload(await coordinator.pull(offer, tmp_path / "update"), limit=2**24)
    assert sent.header.examples > 1000
    assert sent.subnet.tensors.keys() == state_tensors(build_model("digitscnn", {}, seed=0)).keys()
    assert bool(psutil.Process().children(recursive=True)) == keep_warm
    agent.stop()
    await asyncio.wait_for(serving, 20)
    assert psutil.Process().children(recursive=True) == []


async def test_a_memory_budget_that_is_too_small_is_a_reported_failure(
    tmp_path: Path, coordinator: ScriptedCoordinator
) -> None:
    config = AgentConfig(device="device", profile=profile(tmp_path, 1, True), state_dir=tmp_path / "state")
    agent = Agent(config, coordinator.broker.link, look=Reading)
    serving = asyncio.create_task(agent.run())
    await coordinator.ask(await first_task(coordinator))
    failure = await coordinator.hears(Failure, timeout_s=100)
    assert failure.code == "out_of_memory"
    agent.stop()
    await asyncio.wait_for(serving, 20)


def profile(folder: Path, memory_mib: int, keep_warm: bool) -> str:
    path = folder / "tiny.toml"
    path.write_text(
        'id = "tiny"\ntitle = "a budget"\ncores = 1\nmemory_mib = 1024\n'
        f"[training]\nmemory_mib = {memory_mib}\nkeep_warm = {str(keep_warm).lower()}\n"
    )
    return str(path)
