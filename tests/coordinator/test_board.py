"""The board: what the broker retains for us becomes what was wished, whatever happens in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.board import Board, Order
from shared.chunks import describe
from shared.codec import decode_coordinator, decode_task
from shared.link import Connected
from shared.memory_link import MemoryBroker
from shared.messages import Blob, CoordinatorState, Plan, Task
from shared.topics import Topics

TOPICS = Topics("talaria")
STATE = CoordinatorState(online=True, epoch=1, run="run")
pytestmark = pytest.mark.timeout(20)


def blob_file(folder: Path, name: str, size: int = 5000, chunk: int = 512) -> tuple[Blob, Path]:
    path = folder / name
    path.write_bytes(name.encode() * size)
    return describe(path, chunk), path


def order(blob: Blob, number: int = 1, deadline: float = 100.0) -> Order:
    plan = Plan(model="digitscnn", algorithm="fedavg")
    return Order(Task(run="run", action="train", round=number, plan=plan, payload=blob, time_left_s=0), deadline)


class Clock:
    def __init__(self) -> None:
        self.now = 40.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def board_on(
    broker: MemoryBroker, clock: Clock | None = None, published: tuple[Blob, ...] = ()
) -> AsyncIterator[Board]:
    link = broker.link("coordinator", None)
    await link.open()
    assert isinstance(await link.receive(), Connected)
    board = Board(link, TOPICS, clock or Clock(), published)
    task = asyncio.create_task(board.run())
    try:
        yield board
    finally:
        task.cancel()
        await asyncio.wait([task])
        await link.close()


def chunks(broker: MemoryBroker, blob: Blob) -> int:
    return sum(topic.startswith(f"talaria/blob/{blob.digest}/") for topic in broker.retained)


async def test_wishes_come_true(tmp_path: Path) -> None:
    broker, clock = MemoryBroker(), Clock()
    blob, path = blob_file(tmp_path, "one")
    async with board_on(broker, clock) as board:
        board.state(STATE)
        board.payloads({blob: path})
        board.order("a", order(blob))
        board.order("b", None)
        await board.settled()
    assert decode_coordinator(broker.retained["talaria/coordinator"]) == STATE
    assert chunks(broker, blob) == blob.chunks
    assert decode_task(broker.retained["talaria/task/a"]).time_left_s == 60.0
    assert "talaria/task/b" not in broker.retained


async def test_the_old_payload_stays_until_the_new_one_and_its_tasks_are_there(tmp_path: Path) -> None:
    broker = MemoryBroker()
    old, new = blob_file(tmp_path, "old"), blob_file(tmp_path, "new")
    async with board_on(broker) as board:
        board.payloads(dict([old]))
        board.order("a", order(old[0]))
        await board.settled()
        publish, seen = broker.publish, []

        def watched(topic: str, payload: bytes, *, retain: bool) -> None:
            if topic == "talaria/task/a":
                seen.append((chunks(broker, old[0]), chunks(broker, new[0])))
            publish(topic, payload, retain=retain)

        broker.publish = watched  # type: ignore[method-assign]
        board.payloads(dict([new]))
        board.order("a", order(new[0], 2))
        await board.settled()
    assert seen == [(old[0].chunks, new[0].chunks)]
    assert chunks(broker, old[0]) == 0


async def test_the_same_order_is_published_once_unless_asked_again(tmp_path: Path) -> None:
    broker, clock = MemoryBroker(), Clock()
    blob, path = blob_file(tmp_path, "one")
    async with board_on(broker, clock) as board:
        board.payloads({blob: path})
        board.order("a", order(blob))
        await board.settled()
        clock.now = 70.0
        board.order("a", order(blob))
        board.order("b", None)
        await board.settled()
        assert decode_task(broker.retained["talaria/task/a"]).time_left_s == 60.0
        board.order("a", order(blob), again=True)
        await board.settled()
        assert decode_task(broker.retained["talaria/task/a"]).time_left_s == 30.0
        clock.now = 200.0
        board.order("a", order(blob), again=True)
        await board.settled()
        assert decode_task(broker.retained["talaria/task/a"]).time_left_s == 0.0
        board.order("a", None)
        await board.settled()
    assert "talaria/task/a" not in broker.retained


async def test_what_the_broker_forgot_is_published_again(tmp_path: Path) -> None:
    broker = MemoryBroker()
    blob, path = blob_file(tmp_path, "one")
    async with board_on(broker) as board:
        board.state(STATE)
        board.payloads({blob: path})
        board.order("a", order(blob))
        await board.settled()
        broker.retained.clear()
        board.connected(forgotten=True)
        await board.settled()
    assert sorted(broker.retained)[-2:] == ["talaria/coordinator", "talaria/task/a"]
    assert chunks(broker, blob) == blob.chunks


async def test_a_broker_that_forgets_while_a_payload_is_published(tmp_path: Path) -> None:
    broker = MemoryBroker()
    blob, path = blob_file(tmp_path, "one")
    async with board_on(broker) as board:
        publish = broker.publish

        def forgetful(topic: str, payload: bytes, *, retain: bool) -> None:
            publish(topic, payload, retain=retain)
            if topic.endswith("/3"):
                broker.publish = publish  # type: ignore[method-assign]
                broker.retained.clear()
                board.connected(forgotten=True)

        broker.publish = forgetful  # type: ignore[method-assign]
        board.payloads({blob: path})
        await board.settled()
    assert chunks(broker, blob) == blob.chunks


async def test_the_same_payload_in_other_chunks(tmp_path: Path) -> None:
    broker = MemoryBroker()
    fine, path = blob_file(tmp_path, "one", chunk=512)
    coarse = describe(path, 4096)
    async with board_on(broker) as board:
        board.payloads({fine: path})
        await board.settled()
        board.payloads({coarse: path})
        await board.settled()
    assert chunks(broker, coarse) == coarse.chunks < fine.chunks
    assert board.lookup(fine.digest) == (coarse, path)
    assert board.lookup("0" * 64) is None


async def test_what_an_earlier_start_left_is_cleared_away(tmp_path: Path) -> None:
    broker = MemoryBroker()
    old, new = blob_file(tmp_path, "old"), blob_file(tmp_path, "new")
    async with board_on(broker) as board:
        board.payloads(dict([old]))
        await board.settled()
    async with board_on(broker, published=(old[0], new[0])) as board:
        board.payloads(dict([new]))
        await board.settled()
    assert (chunks(broker, old[0]), chunks(broker, new[0])) == (0, new[0].chunks)


async def test_withdrawing_leaves_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    blob, path = blob_file(tmp_path, "one")
    async with board_on(broker) as board:
        board.payloads({blob: path})
        board.order("a", order(blob))
        await board.settled()
        board.withdraw()
        await board.settled()
    assert broker.retained == {}


async def test_a_payload_that_is_not_wanted_any_more_while_it_is_published_is_cleared_away(tmp_path: Path) -> None:
    """And until then a checkpoint would name it."""
    broker, named = MemoryBroker(), []
    old, new = blob_file(tmp_path, "old"), blob_file(tmp_path, "new")
    async with board_on(broker) as board:
        publish = broker.publish

        def overtaking(topic: str, payload: bytes, *, retain: bool) -> None:
            publish(topic, payload, retain=retain)
            if topic == TOPICS.chunk(old[0].digest, 0, 3) and payload:
                board.payloads(dict([new]))
                named.append(board.published())

        broker.publish = overtaking  # type: ignore[method-assign]
        board.payloads(dict([old]))
        await board.settled()
        assert board.published() == {new[0]}
    assert named == [{old[0], new[0]}]
    assert (chunks(broker, old[0]), chunks(broker, new[0])) == (0, new[0].chunks)


async def test_withdrawing_takes_back_what_an_earlier_start_asked(tmp_path: Path) -> None:
    broker = MemoryBroker()
    blob, path = blob_file(tmp_path, "one")
    async with board_on(broker) as board:
        board.payloads({blob: path})
        board.order("a", order(blob))
        await board.settled()
    async with board_on(broker, published=(blob,)) as board:
        board.withdraw(["a", "b"])
        await board.settled()
    assert broker.retained == {}
