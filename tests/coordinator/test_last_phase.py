"""After the last round every device of the fleet personalizes, also who was away, was never asked, or failed once."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_device import Train, echo
from fleet import World, running

from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal
from shared.codec import decode_task
from shared.messages import Failure, Task
from shared.tensors import Tensors

Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(60)


def personalizing_only(tensors: Tensors, task: Task) -> bytes | Failure | None:
    """Silent in the rounds."""
    return echo(tensors, task) if task.action == "personalize" else None


def when(gate: asyncio.Event, action: str) -> Train:
    """Silent about this action until the gate is open."""
    return lambda tensors, task: echo(tensors, task) if task.action != action or gate.is_set() else None


def personalized(world: World) -> dict[str, Any]:
    *_, line = read_journal(world.directory.journal_path)
    assert line["event"] == "personalized"
    return line


def devices(line: dict[str, Any]) -> list[str]:
    return [entry["device"] for entry in line["devices"]]


async def killed(run: "asyncio.Task[None]") -> None:
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_who_was_away_in_the_last_round_personalizes_on_its_return(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, min_devices=3), tmp_path)
    c = world.device("c", personalizing_only)
    async with running(world.device("a"), world.device("b"), c):
        run = asyncio.create_task(world.coordinator().run())
        await c.fetched.wait()
        world.broker.cut("c")
        await world.until("reported", 2)
        task = decode_task(world.broker.retained["talaria/task/c"])
        assert (task.action, task.round) == ("personalize", 2)
        world.broker.restore("c")
        await run
    assert devices(personalized(world)) == ["a", "b", "c"]
    assert [event["round"] for event in world.told("closed")] == [1]
    assert world.told("finished")[0]["absent"] == []


async def test_who_was_never_in_a_cohort_personalizes_too(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, cohort=2, min_devices=4), tmp_path)
    async with running(*(world.device(name) for name in "abcd")):
        await world.coordinator().run()
    first = next(read_journal(world.directory.journal_path))
    assert len(first["cohort"]) == 2
    assert devices(personalized(world)) == ["a", "b", "c", "d"]


async def test_who_does_not_return_in_time_is_named(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, min_devices=3, personalize_deadline_s=1.0), tmp_path)
    c = world.device("c", lambda tensors, task: None)
    async with running(world.device("a"), world.device("b"), c):
        run = asyncio.create_task(world.coordinator().run())
        await c.fetched.wait()
        world.broker.cut("c")
        await run
    line = personalized(world)
    assert (devices(line), line["absent"], line["failed"]) == (["a", "b"], ["c"], [])
    assert line["wall_s"] > 0.5
    assert "talaria/task/c" not in world.broker.retained  # nothing is asked of it when it returns


@pytest.mark.parametrize("returns", ["while there is no coordinator", "after the restart"])
async def test_the_coordinator_is_killed_while_a_device_is_away(begin: Begin, tmp_path: Path, returns: str) -> None:
    world = World(begin(count=1, min_devices=3), tmp_path)
    c = world.device("c", personalizing_only)
    async with running(world.device("a"), world.device("b"), c):
        run = asyncio.create_task(world.coordinator().run())
        await c.fetched.wait()
        world.broker.cut("c")
        await world.until("reported", 2)
        await killed(run)
        if returns == "while there is no coordinator":
            c.fetched.clear()
            world.broker.restore("c")
            await c.fetched.wait()  # the broker has kept task and payload for it
            await world.coordinator().run()
        else:
            run = asyncio.create_task(world.coordinator().run())
            await world.until("device", 7)  # 3 came, one went; the same three again
            world.broker.restore("c")
            await run
    assert devices(personalized(world)) == ["a", "b", "c"]


async def test_a_restart_remembers_a_device_that_was_only_seen(begin: Begin, tmp_path: Path) -> None:
    """It came while a round was open, and went; nothing else happened before the coordinator was killed."""
    world = World(begin(count=1), tmp_path)
    first, second = asyncio.Event(), asyncio.Event()
    a, b, c = world.device("a", when(first, "train")), world.device("b", when(second, "train")), world.device("c")
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("opened")
        async with running(c):
            await world.until("device", 3)
            world.broker.cut("c")
            await world.until("device", 4)
            first.set()
            await a.announce()
            await world.until("accepted")  # what came before has been dealt with
            await killed(run)
            second.set()
            run = asyncio.create_task(world.coordinator().run())
            await world.until("reported", 2)
            world.broker.restore("c")
            await run
    assert next(read_journal(world.directory.journal_path))["cohort"] == ["a", "b"]
    assert devices(personalized(world)) == ["a", "b", "c"]


async def test_who_failed_is_asked_again_when_it_announces_itself(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    gate = asyncio.Event()

    def second_time_lucky(tensors: Tensors, task: Task) -> bytes | Failure | None:
        if task.action == "personalize" and not world.told("failed"):
            return Failure(run=task.run, round=task.round, code="out_of_memory", reason="it was full")
        return echo(tensors, task)

    a, b = world.device("a", when(gate, "personalize")), world.device("b", second_time_lucky)
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("failed")
        await b.announce()
        await world.until("reported")
        gate.set()
        await a.announce()
        await run
    line = personalized(world)
    assert devices(line) == ["a", "b"]
    assert [(entry["device"], entry["code"]) for entry in line["failed"]] == [("b", "out_of_memory")]
    assert world.told("finished")[0]["failed"] == []
