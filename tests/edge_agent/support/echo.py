"""Work that echoes, and an agent that runs with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from scripted import ScriptedCoordinator, make_task

from edge_agent.agent import Agent
from edge_agent.health import Reading
from edge_agent.job import MEMORY, UPDATE, Job, Outcome
from shared.codec import decode_presence
from shared.config import AgentConfig
from shared.messages import Presence, Task

FINE = Reading(temperature_c=40)
DATA = bytes(range(256)) * 32
"""8 chunks of 1 KiB."""


class Echo:
    """Work that returns what it got. Closing `gate` holds it in the middle; `fails` is what it ends with instead."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.memories: list[bytes | None] = []
        self.cancelled: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Condition()
        self.fails: Outcome | Exception | None = None

    async def __call__(self, job: Job) -> Outcome:
        self.jobs.append(job)
        self.memories.append(job.memory.read_bytes() if job.memory else None)
        async with self.news:
            self.news.notify_all()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(job.task.round)
            async with self.news:
                self.news.notify_all()
            raise
        if isinstance(self.fails, Exception):
            raise self.fails
        if self.fails:
            return self.fails
        (job.out / MEMORY).write_bytes(f"memory of round {job.task.round}".encode())
        if job.task.action == "train":
            (job.out / UPDATE).write_bytes(job.payload.read_bytes())
        return Outcome(examples=12, metrics={"accuracy": 0.5})

    async def begins(self, count: int = 1) -> None:
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: len(self.jobs) >= count)

    async def is_cancelled(self) -> None:
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: self.cancelled)


@contextlib.asynccontextmanager
async def running(
    config: AgentConfig, coordinator: ScriptedCoordinator, work: Echo, **options: Any
) -> AsyncIterator[Agent]:
    agent = Agent(config, coordinator.broker.link, work, **{"look": lambda: FINE, **options})
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop()
        await task


async def train(coordinator: ScriptedCoordinator, round_: int = 1, data: bytes = DATA, **fields: Any) -> Task:
    task = make_task(round_, payload=await coordinator.publish(data), **fields)
    await coordinator.ask(task)
    return task


def retained_presence(coordinator: ScriptedCoordinator) -> Presence:
    return decode_presence(coordinator.broker.retained[coordinator.topics.presence("device")])
