"""The ONNX template may take minutes; the coordinator serves its fleet meanwhile."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import World, running
from pruned import pruning_config, pruning_run

from coordinator.checkpoints import RunDirectory
from coordinator.events import Phase
from shared.messages import Failure

Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(60)


class Gate:
    """Makes a stand-in for the template when it is opened."""

    def __init__(self, directory: RunDirectory) -> None:
        self.opened = asyncio.Event()
        self.directory = directory
        directory.template.unlink()

    def __call__(self, warn: Callable[[str], None]) -> "Gate":
        return self

    async def define(self, directory: RunDirectory) -> None:
        """It is there."""

    async def template(self) -> None:
        await self.opened.wait()
        self.directory.template.write_bytes(b"template")

    async def stop(self) -> None:
        """Nothing runs."""


@pytest.mark.parametrize("killed", [False, True])
async def test_messages_are_answered_while_the_template_is_made(begin: Begin, tmp_path: Path, killed: bool) -> None:
    world = World(begin(count=1), tmp_path)
    gate = Gate(world.directory)
    a, b, c = (world.device(name) for name in "abc")
    async with running(a, b):
        run = asyncio.create_task(world.coordinator(prepare=gate).run())
        await world.until("preparing")
        if killed:
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            run = asyncio.create_task(world.coordinator(prepare=gate).run())
            await world.until("started", 2)
        receipts = len(a.receipts)
        await a.say(Failure(run="run", round=1, code="late", reason="it thinks that the round is open"))
        await a.settled(receipts + 1)
        async with running(c):  # it comes in that time, and is not forgotten
            await world.until("device", 5 if killed else 3)
            assert not world.told("personalizing")
            assert {task.action for task in (*a.tasks, *b.tasks, *c.tasks)} == {"train"}
            gate.opened.set()
            await run
    assert [device.tasks[-1].template is not None for device in (a, b, c)] == [True] * 3
    assert world.told("finished")[0]["reported"] == ["a", "b", "c"]
    checkpoint = world.directory.peek()
    assert checkpoint is not None
    assert checkpoint.engine.phase is Phase.FINISHED


async def test_who_measures_is_asked_when_there_is_something_to_measure(tmp_path: Path) -> None:
    directory = pruning_run(tmp_path / "run-dir", pruning_config(target={"latency_ms": 5.0}, count=1))
    world = World(directory, tmp_path)
    gate = Gate(directory)
    a, b = world.device("a"), world.device("b")
    async with running(a, b):
        run = asyncio.create_task(world.coordinator(prepare=gate).run())
        await world.until("device", 2)
        await a.say(Failure(run="run", round=1, code="early", reason="nothing was asked of it"))
        await a.settled(1)
        assert not world.told("opened")
        gate.opened.set()
        await run
    assert all(task.template is not None for task in (*a.tasks, *b.tasks))
