"""A whole coordinator in buffered mode: a slow device stops nobody and is not lost, whatever is killed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from crashes import Crash, Steps
from fleet import World, adding, running, tensors_of

from coordinator.audit import audit_run
from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal
from shared.messages import Failure, Task
from shared.tensors import Tensors

Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(120)
CHANGES = {"a": 1.0, "b": 2.0, "c": 6.0}


def rounds_of(directory: RunDirectory) -> list[dict[str, object]]:
    return [line for line in read_journal(directory.journal_path) if line["event"] == "round"]


def moved_by(directory: RunDirectory, changes: dict[str, float]) -> float:
    """How far the journal says that everything moved: a device adds its constant to what it started from."""
    return sum(
        float(np.mean([changes[e["device"]] / np.sqrt(1 + e["staleness"]) for e in line["accepted"]]))  # type: ignore[attr-defined]
        for line in rounds_of(directory)
    )


async def test_a_slow_device_stops_nobody_and_counts_when_it_is_done(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(mode="buffered", count=4, quorum=2, min_devices=3), tmp_path)
    done = asyncio.Event()

    def slow(tensors: Tensors, task: Task) -> bytes | Failure | None:
        return adding(8.0)(tensors, task) if done.is_set() or task.action == "personalize" else None

    def until_the_last(tensors: Tensors, task: Task) -> bytes | Failure | None:
        return None if task.action == "train" and task.round == 4 else adding(1.0)(tensors, task)

    late = world.device("slow", slow)
    async with running(world.device("a", until_the_last), world.device("b", adding(2.0)), late):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("closed", 3)
        await late.until(lambda: 1 in late.received)
        assert [task.round for task in late.tasks] == [1] * len(late.tasks)  # nobody took it from its work
        assert (world.directory.path / "globals" / "00001.payload").exists()
        done.set()
        await late.announce()
        await run
    lines = rounds_of(world.directory)
    entries = [[(e["device"], e["start"], e["staleness"]) for e in line["accepted"]] for line in lines]  # type: ignore[attr-defined]
    assert entries == [[("a", n, 0), ("b", n, 0)] for n in (1, 2, 3)] + [[("b", 4, 0), ("slow", 1, 3)]]
    result = tensors_of(world.directory.global_payload(5))
    for name, array in world.initial.items():
        if array.dtype.kind == "f":
            step = (2 + 0.5 * 8) / 2 if "running" not in name else (2 + 0.5 * (8 - 4.5)) / 2
            np.testing.assert_allclose(result[name], array + 4.5 + step, rtol=1e-5)


async def test_too_late_is_stale_and_the_device_begins_anew(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(mode="buffered", count=3, quorum=2, min_devices=3, max_staleness=0), tmp_path)
    held: list[Task] = []

    def slow(tensors: Tensors, task: Task) -> bytes | Failure | None:
        held.append(task)
        return None if task.action == "train" else adding(0.0)(tensors, task)

    late = world.device("slow", slow)
    async with running(world.device("a"), world.device("b"), late):
        await world.coordinator().run()
    assert [task.round for task in late.tasks if task.action == "train"][-1] > 1
    counted = {e["device"] for line in rounds_of(world.directory) for e in line["accepted"]}  # type: ignore[attr-defined]
    assert counted == {"a", "b"}


@pytest.mark.parametrize("at", [5, 9, 14, 22, 31])
async def test_killed_anywhere_every_update_counts_once(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The coordinator dies before step `at` of each of its lives, every life a step longer than the last."""
    world = World(begin(mode="buffered", count=4, quorum=2, min_devices=3), tmp_path)
    config = world.directory.record().config
    config = config.model_copy(update={"run": config.run.model_copy(update={"keep_updates": True})})
    devices, deaths = [world.device(name, adding(value)) for name, value in CHANGES.items()], 0
    async with running(*devices):
        while True:
            with monkeypatch.context() as inner, ThreadPoolExecutor() as threads:
                asyncio.get_running_loop().set_default_executor(threads)
                Steps(inner, at + deaths, world.directory.path)
                try:
                    await world.coordinator(config).run()
                except Crash:
                    deaths += 1
                    continue
            break
    assert deaths > 0
    lines = rounds_of(world.directory)
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    counted = [(e["device"], e["start"]) for line in lines for e in line["accepted"]]  # type: ignore[attr-defined]
    assert len(counted) == len(set(counted))
    for device in devices:
        promised = {(device.name, r.round) for r in device.receipts if r.answers == "offer" and r.accepted}
        assert promised <= set(counted), "lost after its receipt"
    result = tensors_of(world.directory.global_payload(5))
    for name, array in world.initial.items():
        if array.dtype.kind == "f" and "running" not in name:
            np.testing.assert_allclose(result[name], array + moved_by(world.directory, CHANGES), rtol=1e-5, atol=1e-5)
    found = audit_run(RunDirectory(world.directory.path))
    assert (found.faults, found.rounds) == ([], 4)
