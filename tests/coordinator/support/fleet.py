"""A coordinator and fake devices around one broker in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fake_device import EXAMPLES, FakeDevice, Train, answering

from coordinator.checkpoints import RunDirectory
from coordinator.preparation import InProcess
from coordinator.server import Coordinator
from shared.codec import open_payload
from shared.config import RunConfig
from shared.memory_link import MemoryBroker
from shared.tensors import Tensors

Prepare = Callable[[Callable[[str], None]], Any]


def plus(value: float) -> Callable[[str, Tensors], Tensors]:
    """A device that adds a constant to everything it received."""

    def change(_: str, received: Tensors) -> Tensors:
        return {name: array + np.asarray(value, array.dtype) for name, array in received.items()}

    return change


def adding(value: float, examples: int = EXAMPLES) -> Train:
    return answering(plus(value), "", examples)


def tensors_of(path: Path) -> Tensors:
    with open_payload(path, limit=2**30) as payload:
        return {name: array.copy() for name, array in payload.subnet.tensors.items()}


class World:
    """One broker, one run's folder, the events that were told."""

    def __init__(self, directory: RunDirectory, folder: Path, **broker: Any) -> None:
        self.broker = MemoryBroker(**broker)
        self.directory = directory
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.initial = tensors_of(directory.global_payload(1))
        self._told = asyncio.Condition()

    def coordinator(self, config: RunConfig | None = None, prepare: Prepare = InProcess) -> Coordinator:
        config = config or self.directory.record().config
        return Coordinator(config, self.broker.link, run_dir=self.directory.path, on_event=self._tell, prepare=prepare)

    def device(self, name: str, train: Train = adding(0), **fields: Any) -> FakeDevice:  # noqa: B008
        return FakeDevice(name, self.broker.link, self.folder / "devices" / name, train, **fields)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    async def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The count-th event of that kind, once it was told."""
        async with self._told:
            await self._told.wait_for(lambda: len(self.told(kind)) >= count)
        return self.told(kind)[count - 1]

    def _tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)

        async def wake() -> None:
            async with self._told:
                self._told.notify_all()

        self._waking = asyncio.ensure_future(wake())


@asynccontextmanager
async def running(*devices: FakeDevice) -> AsyncIterator[None]:
    """The devices live as long as this block."""
    tasks = [asyncio.create_task(device.run()) for device in devices]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [result for result in results if not isinstance(result, asyncio.CancelledError)]
    assert not broken, broken
