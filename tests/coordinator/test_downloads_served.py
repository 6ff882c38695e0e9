"""Downloads of a whole coordinator: per device, through restarts, and gone from the broker when the run is over."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_device import EXAMPLES, FakeDevice, Train
from fleet import World, running
from pruned import first, last, layout_of, pruning_config, pruning_run

from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal
from shared.codec import decode_task, encode_payload, open_payload
from shared.encoding import Encoding
from shared.messages import Capabilities, Task
from shared.pruning import take
from shared.tensors import Masks, Subnet, Tensors
from shared.topics import Topics
from shared.transfer import published_size

TOPICS = Topics("talaria")
pytestmark = pytest.mark.timeout(60)


def holding(directory: RunDirectory, held: Masks | None, gate: Callable[[Task], bool] = lambda task: True) -> Train:
    """A device that holds these channels and changes nothing; silent where the gate is closed."""
    layout = layout_of(directory)

    def train(tensors: Tensors, task: Task) -> bytes | None:
        if not gate(task):
            return None
        with open_payload(directory.global_payload(task.round), limit=2**30) as payload:
            subnet = Subnet(take(payload.subnet.tensors, layout, held), held)
            return encode_payload(
                subnet, run=task.run, round=task.round, examples=EXAMPLES, weight=float(EXAMPLES), metrics={}
            )

    return train


def reads(*encodings: Encoding) -> Capabilities:
    return Capabilities(profile="container", train=True, examples=EXAMPLES, encodings=encodings)


def blobs(world: World) -> set[str]:
    """Digests of the payloads that the broker keeps."""
    return {topic.split("/")[2] for topic in world.broker.retained if topic.startswith("talaria/blob/")}


def units(tensors: Tensors) -> int:
    """Rows of the first convolution."""
    return len(tensors["0.weight"])


async def killed(run: "asyncio.Task[None]") -> None:
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


def start(tmp_path: Path, **settings: object) -> tuple[World, RunDirectory]:
    directory = pruning_run(tmp_path / "run", pruning_config(**settings))  # type: ignore[arg-type]
    return World(directory, tmp_path), directory


async def test_each_device_is_sent_what_it_holds(tmp_path: Path) -> None:
    world, directory = start(tmp_path, overlap="any", quorum=3, min_devices=3)
    layout = layout_of(directory)
    half, quarter = first(layout, 0.5), last(layout, 0.25)
    a = world.device("a", holding(directory, half))
    b = world.device("b", holding(directory, quarter), capabilities=reads(Encoding.INT8))
    c = world.device("c", holding(directory, half))
    async with running(a, b, c):
        await world.coordinator().run()
    assert [units(a.received[n]) for n in (1, 2, 3)] == [16, 8, 8]
    assert [units(b.received[n]) for n in (1, 2, 3)] == [16, 4, 4]
    one, two, _ = read_journal(directory.journal_path)
    for line, number in ((one, 0), (two, 1)):
        given = [device.tasks[number].payload for device in (a, b, c)]
        assert given[0] == given[2] != given[1]
        assert line["payload_bytes"] == max(blob.size for blob in given) == given[0].size
        assert line["bytes_down"] == sum(published_size(TOPICS, blob, range(blob.chunks)) for blob in given)
    assert two["bytes_down"] < 0.5 * one["bytes_down"]
    assert one["digest"] not in {task.payload.digest for device in (a, b, c) for task in device.tasks}
    assert world.told("finished")[0]["reported"] == ["a", "b", "c"]
    assert blobs(world) == set()


async def test_a_restart_in_the_middle_of_a_round_disturbs_nobody(tmp_path: Path) -> None:
    """Two devices have their own downloads of round 2, one has answered; the other is still at it."""
    world, directory = start(tmp_path, quorum=2, min_devices=2, overlap="any")
    layout, go_on = layout_of(directory), asyncio.Event()
    a = world.device("a", holding(directory, first(layout, 0.5)), capabilities=reads(Encoding.FLOAT16))
    b = world.device("b", holding(directory, last(layout, 0.25), lambda task: task.round == 1 or go_on.is_set()),
                     capabilities=reads(Encoding.INT8))  # fmt: skip
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted", 3)
        await b.until(lambda: 2 in b.received)
        before, kept = b.tasks[-1], blobs(world)
        assert before.payload.digest in kept
        await killed(run)
        cleared: list[str] = []
        publish = world.broker.publish

        def watched(topic: str, payload: bytes, *, retain: bool) -> None:
            if not payload and before.payload.digest in topic and not go_on.is_set():
                cleared.append(topic)
            publish(topic, payload, retain=retain)

        world.broker.publish = watched  # type: ignore[method-assign]
        asked = len(b.tasks)
        run = asyncio.create_task(world.coordinator().run())
        await b.until(lambda: len(b.tasks) > asked)
        assert b.tasks[-1].payload == before.payload
        assert blobs(world) >= {before.payload.digest}
        assert cleared == []
        go_on.set()
        b._working = True  # it has the file, and trains now
        await b._fetch(b.tasks[-1])
        await run
    assert [units(b.received[n]) for n in (1, 2, 3)] == [16, 4, 4]
    assert [line["event"] for line in read_journal(directory.journal_path)] == ["round", "round", "personalized"]
    assert blobs(world) == set()


async def test_a_restart_between_two_rounds_sends_what_was_held(tmp_path: Path) -> None:
    world, directory = start(tmp_path, overlap="agreed")
    half = first(layout_of(directory), 0.5)
    a, b = world.device("a", holding(directory, half)), world.device("b", holding(directory, half))
    async with running(a):
        async with running(b):
            run = asyncio.create_task(world.coordinator().run())
            await world.until("closed")
            await killed(run)
        again = world.device("b", holding(directory, half))
        async with running(again):
            await world.coordinator().run()
    assert [units(a.received[n]) for n in (1, 2, 3)] == [16, 8, 8]
    assert a.tasks[-1].payload == again.tasks[-1].payload
    assert blobs(world) == set()


async def test_who_is_away_at_a_restart_keeps_its_order_until_the_end(tmp_path: Path) -> None:
    world, directory = start(tmp_path, count=1, min_devices=3, personalize_deadline_s=1.0)
    half = first(layout_of(directory), 0.5)
    a, b = world.device("a", holding(directory, half)), world.device("b", holding(directory, half))
    c = world.device("c", holding(directory, half, lambda task: False), capabilities=reads(Encoding.INT8))
    async with running(a, b, c):
        run = asyncio.create_task(world.coordinator().run())
        await c.fetched.wait()
        world.broker.cut("c")
        await world.until("reported", 2)
        task = decode_task(world.broker.retained["talaria/task/c"])
        assert task.action == "personalize"
        await killed(run)
        run = asyncio.create_task(world.coordinator().run())
        await world.until("device", 7)
        assert decode_task(world.broker.retained["talaria/task/c"]) == task
        assert task.payload.digest in blobs(world)
        await run
    assert world.told("finished")[0]["absent"] == ["c"]
    assert "talaria/task/c" not in world.broker.retained
    assert blobs(world) == set()


async def test_who_comes_late_is_sent_what_is_alive(tmp_path: Path) -> None:
    world, directory = start(tmp_path, count=1, overlap="agreed")
    half, wait = first(layout_of(directory), 0.5), asyncio.Event()
    a = world.device("a", holding(directory, half))
    b = world.device("b", holding(directory, half, lambda task: task.action == "train" or wait.is_set()))
    late = world.device("late", holding(directory, None), capabilities=reads(Encoding.FLOAT16))
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("reported")
        async with running(late):
            await world.until("reported", 2)
            assert late.tasks[0].payload.digest in blobs(world)
            wait.set()
            await b.announce()
            await b._fetch(b.tasks[-1])
            await run
    assert units(late.received[2]) == 8
    with open_payload(late.folder / "2.payload", limit=2**30) as payload:
        assert payload.header.encoding == "float16"
    assert blobs(world) == set()


async def test_what_a_killed_coordinator_left_is_cleared_away_however_much(tmp_path: Path) -> None:
    world, directory = start(tmp_path, overlap="any", quorum=8, min_devices=8, personalize_deadline_s=1.0)
    layout = layout_of(directory)
    devices: list[FakeDevice] = []
    for number in range(8):
        held = first(layout, (number + 1) / 9)
        devices.append(world.device(f"d{number}", holding(directory, held, lambda task: task.round == 1)))
    async with running(*devices):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("opened", 2)
        for device in devices:
            await device.until(lambda device=device: 2 in device.received)
        assert len(blobs(world)) == 8
        assert world.told("opened")[1]["broker_bytes"] == sum(device.tasks[-1].payload.size for device in devices)
        await killed(run)
        for device in devices:  # for good
            world.broker.cut(device.name)
    others = [world.device(f"e{number}", holding(directory, None)) for number in range(8)]
    async with running(*others):
        await world.coordinator().run()
    assert world.told("finished")[0]["absent"] == [device.name for device in devices]
    assert blobs(world) == set()


@pytest.mark.parametrize(("target", "sent"), [({"latency_ms": 5.0}, True), ({"macs": 0.5}, False)])
async def test_who_chooses_by_latency_is_sent_the_template_with_every_task(
    tmp_path: Path, target: dict[str, float], sent: bool
) -> None:
    world, directory = start(tmp_path, target=target)
    a, b = world.device("a", holding(directory, None)), world.device("b", holding(directory, None))
    async with running(a, b):
        await world.coordinator().run()
    assert [task.action for task in a.tasks] == ["train", "train", "personalize"]
    assert [task.template is not None for task in a.tasks] == [sent, sent, True]
    assert blobs(world) == set()
