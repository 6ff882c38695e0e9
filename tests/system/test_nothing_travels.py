"""Runs in which no tensor is shared: production coordinator, agents and worker, over a broker in memory."""

import asyncio
from pathlib import Path
from typing import Any

from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal
from coordinator.preparation import InProcess, make_template
from coordinator.server import Coordinator
from edge_agent.agent import Agent
from edge_agent.job import MEMORY, PERSONAL, Job, Outcome
from edge_agent.worker import attempt
from lab.fleet import emulated_devices
from shared.codec import open_payload
from shared.config import RunConfig
from shared.memory_link import MemoryBroker
from shared.models import build_model
from shared.tensors import Tensors

DEVICES, ROUNDS = 3, 2
SMALL = 4096
"""Bytes: more than an empty payload has, less than the model's tensors."""


def tensors_of(path: Path) -> Tensors:
    with open_payload(path, limit=2**24) as payload:
        return {name: array.copy() for name, array in payload.subnet.tensors.items()}


class TemplateFirst(InProcess):
    """Exporting in one thread while another trains in the same process may change the last bits of what is learnt."""

    async def define(self, directory: RunDirectory) -> None:
        await super().define(directory)
        await asyncio.to_thread(make_template, directory)


class Fleet:
    """A run. In the end, `own`: device -> the tensors of its personal model, `remembered`: what it kept."""

    def __init__(self, directory: Path, algorithm: str, **hyperparameters: Any) -> None:
        self.directory = RunDirectory(directory)
        self.config = RunConfig.model_validate(
            {
                "run": {"seed": 5},
                "model": {"name": "digitscnn", "options": {"width": 4}},
                "algorithm": {"name": algorithm, "epochs": 1, **hyperparameters},
                "rounds": {"count": ROUNDS, "quorum": DEVICES, "min_devices": DEVICES},
                "data": {"partition": {"kind": "iid"}},
                "fleet": {"devices": DEVICES},
            }
        )
        self.own: dict[str, Tensors] = {}
        self.remembered: dict[str, Tensors] = {}
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        broker, devices = MemoryBroker(), emulated_devices(self.config, self.directory.path)
        async with asyncio.TaskGroup() as tasks:
            for agent in devices.values():
                tasks.create_task(Agent(agent, broker.link, self._work, once=True).run())
            await Coordinator(
                self.config,
                broker.link,
                run_dir=self.directory.path,
                on_event=lambda event: None,
                prepare=TemplateFirst,
            ).run()

    async def _work(self, job: Job) -> Outcome:
        async with self._one_at_a_time:
            outcome = await asyncio.to_thread(attempt, job)
        assert outcome.succeeded, outcome.reason
        if job.task.action == "personalize":
            self.own[job.device] = tensors_of(job.out / PERSONAL)
            self.remembered[job.device] = tensors_of(job.out / MEMORY)
        return outcome


def everything() -> list[str]:
    return [
        name for name, child in build_model("digitscnn", {"width": 4}, seed=5).named_children() if child.state_dict()
    ]


async def test_runs_without_a_shared_tensor(tmp_path: Path) -> None:
    """Training alone, and FedPer with nothing but a head, which is the same bit for bit."""
    alone, head = Fleet(tmp_path / "local", "local"), Fleet(tmp_path / "head", "fedper", head=everything())
    for fleet in (alone, head):
        await fleet.run()
        check(fleet)
    for device, tensors in alone.own.items():
        assert alike(head.own[device], tensors), device


def check(fleet: Fleet) -> None:
    """Rounds are made and counted, updates are empty, and every device ends with a model of its own in service."""
    *rounds, personalized = read_journal(fleet.directory.journal_path)
    assert len(rounds) == ROUNDS
    for number, line in enumerate(rounds, start=1):
        assert (len(line["accepted"]), line["rejected"], line["failed"]) == (DEVICES, [], [])
        assert max(entry["bytes"] for entry in line["accepted"]) < SMALL, "no tensor fits into an update"
        assert line["payload_bytes"] < SMALL
        assert tensors_of(fleet.directory.global_payload(number + 1)) == {}
    metrics = [entry["metrics"] for entry in personalized["devices"]]
    assert len(metrics) == DEVICES
    assert all(entry["accuracy"] > entry["accuracy_global"] for entry in metrics), "they learnt, and nobody else did"
    assert all(entry["parity"] <= 1e-4 for entry in metrics), "the model was exported and is in service"
    assert len({tensors["14.weight"].tobytes() for tensors in fleet.own.values()}) == DEVICES
    for device, tensors in fleet.own.items():
        assert alike(fleet.remembered[device], {f"local/{name}": array for name, array in tensors.items()})


def alike(some: Tensors, others: Tensors) -> bool:
    """Bit for bit."""
    return {name: array.tobytes() for name, array in some.items()} == {
        name: array.tobytes() for name, array in others.items()
    }
