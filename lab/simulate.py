"""A fleet in one process: the production coordinator and agents over an in-memory broker, for many devices."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coordinator.preparation import InProcess
from coordinator.server import Coordinator
from edge_agent.agent import Agent
from edge_agent.job import Job, Outcome
from edge_agent.trainer import Trainer
from lab.fleet import emulated_devices
from shared.config import RunConfig
from shared.memory_link import MemoryBroker
from shared.settings import example_toml


class TrainerPool:
    """Trains for all devices: as many trainer processes as there are cores, each job in whichever is free."""

    def __init__(self, size: int) -> None:
        self._trainers = [Trainer() for _ in range(size)]
        self._free: asyncio.Queue[Trainer] = asyncio.Queue()
        for trainer in self._trainers:
            self._free.put_nowait(trainer)

    async def __call__(self, job: Job) -> Outcome:
        """An edge_agent.trainer.Work. The job's own deadline starts when a trainer is free."""
        trainer = await self._free.get()
        try:
            return await trainer(job)
        finally:
            self._free.put_nowait(trainer)

    async def close(self) -> None:
        await asyncio.gather(*(trainer.close() for trainer in self._trainers))


async def simulate(config: RunConfig, directory: Path, on_event: Callable[[Mapping[str, Any]], None]) -> int:
    """Run the whole fleet below `directory`; 0 when the run came to its end. `on_event`: see coordinator.server.

    Updates are folded in as they arrive, so two runs of the same seed may differ in the last bits of a float.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.toml").write_text(example_toml(config))
    broker, pool = MemoryBroker(), TrainerPool(os.cpu_count() or 1)
    try:
        async with asyncio.TaskGroup() as tasks:
            for agent in emulated_devices(config, directory).values():
                tasks.create_task(Agent(agent, broker.link, pool, once=True).run())
            await Coordinator(config, broker.link, run_dir=directory, on_event=on_event, prepare=InProcess).run()
    finally:
        await pool.close()
    return 0
