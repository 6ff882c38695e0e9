"""Whole runs of the coordinator over a broker in memory, with devices that speak the real protocol."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_device import EXAMPLES, echo
from fleet import World, adding, running, tensors_of

from coordinator.checkpoints import RunDirectory, RunRecord
from coordinator.journal import read_journal
from shared.codec import decode_coordinator, decode_downlink, decode_task, encode_message
from shared.config import RunConfig
from shared.errors import ConfigError, StateError
from shared.link import Received, packet_size
from shared.messages import Capabilities, Chunk, Failure, Offer, Ranges, Want
from shared.tensors import Tensors
from shared.topics import Topics

Begin = Callable[..., RunDirectory]
TOPICS = Topics("talaria")
pytestmark = pytest.mark.timeout(60)


def moved(tensors: Tensors, by: float) -> Tensors:
    return {name: array + np.asarray(by, array.dtype) for name, array in tensors.items()}


def packets_up(entry: dict[str, Any]) -> int:
    """Bytes of the packets in which an update of the journal came, with chunks of 4096 - 512 bytes."""
    chunks = -(-entry["bytes"] // 3584)
    lengths = [3584] * (chunks - 1) + [entry["bytes"] - 3584 * (chunks - 1)]
    messages = [Chunk(digest="0" * 64, index=i, data=bytes(length)) for i, length in enumerate(lengths)]
    return sum(packet_size(TOPICS.up(entry["device"]), len(encode_message(message))) for message in messages)


def check_global(world: World, number: int, wanted: Tensors) -> None:
    """The tensors that round `number` starts from."""
    result = tensors_of(world.directory.global_payload(number))
    for name, array in wanted.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


async def test_a_whole_run(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(), tmp_path)
    light, heavy = world.device("light", adding(1, examples=2)), world.device("heavy", adding(5, examples=6))
    async with running(light, heavy):
        await world.coordinator().run()
        check_global(world, 3, moved(world.initial, 2 * 4.0))  # (2 * 1 + 6 * 5) / 8 per round
        check_global(world, 2, heavy.received[2])
        assert [task.action for task in light.tasks] == ["train", "train", "personalize"]
        assert [task.round for task in light.tasks] == [1, 2, 3]
        assert all(0 < task.time_left_s <= 60 for task in light.tasks)
        assert light.tasks[2].template is not None
        assert [(r.round, r.accepted) for r in light.receipts] == [(1, True), (2, True), (3, True)]
    rounds = list(read_journal(world.directory.journal_path))
    assert [(line["event"], line["round"]) for line in rounds] == [("round", 1), ("round", 2), ("personalized", 3)]
    first = rounds[0]
    size = light.tasks[0].payload.size
    assert first["cohort"] == ["heavy", "light"]
    assert {e["device"]: (e["examples"], e["weight"], e["kept"], e["metrics"]) for e in first["accepted"]} == {
        "light": (2, 2.0, 1.0, {"accuracy": 0.5, "test_examples": 2.0}),
        "heavy": (6, 6.0, 1.0, {"accuracy": 0.5, "test_examples": 6.0}),
    }
    half = {"count": 2, "weighted_mean": 0.5, "mean": 0.5, "deviation": 0.0, "p10": 0.5}
    assert first["evaluation"] == {"accuracy": half | {"worst": 0.5, "worst_device": "heavy"}}
    assert world.told("closed")[0]["evaluation"] == first["evaluation"]
    assert (first["rejected"], first["failed"], first["attempts"]) == ([], [], 1)
    assert first["bytes_up"] == sum(packets_up(entry) for entry in first["accepted"])
    first_chunk = 122_880 - 512
    down = sum(
        packet_size(f"talaria/blob/{'0' * 64}/0/{i}", part) for i, part in enumerate((first_chunk, size - first_chunk))
    )
    assert (first["payload_bytes"], first["bytes_down"]) == (size, 2 * down)
    assert first["digest"] == light.tasks[1].payload.digest
    assert rounds[2]["devices"] == [
        {"device": name, "examples": EXAMPLES, "metrics": {"accuracy": 1.0, "test_examples": EXAMPLES}}
        for name in ("heavy", "light")
    ]
    assert (rounds[2]["absent"], rounds[2]["failed"]) == ([], [])
    assert rounds[2]["evaluation"]["accuracy"]["worst"] == 1.0
    assert world.told("finished")[0]["evaluation"] == rounds[2]["evaluation"]
    twin = world.told("finished")[0]["devices"]["light"]
    assert (twin["accepted"], twin["rejected"], twin["failed"], twin["online"]) == (2, {}, {}, True)
    updates = [entry for line in rounds[:2] for entry in line["accepted"] if entry["device"] == "light"]
    assert [update["encoding"] for update in updates] == ["float32", "float32"]
    assert twin["bytes_up"] == sum(map(packets_up, updates))
    told = [event["event"] for event in world.events if event["event"] not in ("device", "connected")]
    assert told == [
        *["started", "opened", "accepted", "accepted", "closed"],
        *["opened", "accepted", "accepted", "closed"],
        *["personalizing", "reported", "reported", "finished"],
    ]


async def test_nothing_stays_at_the_broker_when_the_run_is_over(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    async with running(world.device("a"), world.device("b")):
        await world.coordinator().run()
    assert sorted(world.broker.retained) == ["talaria/coordinator", "talaria/presence/a", "talaria/presence/b"]
    assert not decode_coordinator(world.broker.retained["talaria/coordinator"]).online


async def test_a_finished_run_finishes_again_at_once(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    async with running(world.device("a"), world.device("b")):
        await world.coordinator().run()
    world.events.clear()
    await world.coordinator().run()
    assert [event["event"] for event in world.events] == ["started"]
    assert world.events[0]["phase"] == "finished"


async def test_the_deadline_closes_a_round_without_the_straggler(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, min_devices=3, deadline_s=0.5, personalize_deadline_s=0.5), tmp_path)
    silent = world.device("silent", lambda tensors, task: None)
    async with running(world.device("a"), world.device("b"), silent):
        await world.coordinator().run()
    (line, end) = read_journal(world.directory.journal_path)
    assert line["cohort"] == ["a", "b", "silent"]
    assert {entry["device"] for entry in line["accepted"]} == {"a", "b"}
    assert 0.5 <= line["wall_s"] < 5
    assert [entry["device"] for entry in end["devices"]] == ["a", "b"]


async def test_a_device_that_fails_is_asked_again_and_its_reason_is_kept(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    asked = 0

    def second_time_lucky(tensors: Tensors, task: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            return Failure(run=task.run, round=task.round, code="out_of_memory", reason="256 MiB were not enough")
        return echo(tensors, task)

    async with running(world.device("a"), world.device("b", second_time_lucky)):
        await world.coordinator().run()
    line = next(read_journal(world.directory.journal_path))
    assert line["attempts"] == 2
    assert line["failed"] == [{"device": "b", "code": "out_of_memory", "reason": "256 MiB were not enough"}]
    assert world.told("abandoned")[0]["reason"] == "nobody left to wait for with 1 of 2 needed updates"
    assert [entry["device"] for entry in line["accepted"]] == ["a", "b"]


async def test_an_offer_whose_receipt_got_lost_is_answered_again(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=2, min_devices=3), tmp_path)
    a, b, late = world.device("a"), world.device("b"), world.device("late", lambda tensors, task: None)
    async with running(a, b, late):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted", 2)
        blob = a.tasks[0].payload  # any blob will do: what counts is device and round
        await a.say(Offer(run="run", round=1, blob=blob))
        await late.say(Offer(run="run", round=1, blob=blob.model_copy(update={"size": 2**39})))
        await a.settled(2)
        await late.settled(1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert [(r.round, r.accepted, r.code) for r in a.receipts] == [(1, True, "accepted")] * 2
        assert [(r.accepted, r.code) for r in late.receipts] == [(False, "too_large")]
    assert len(world.directory.accepted(1)) == 2


async def test_a_device_that_comes_back_gets_its_task_with_fresh_time(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    let_go = asyncio.Event()
    a, b = world.device("a"), world.device("b", lambda tensors, task: echo(tensors, task) if let_go.is_set() else None)
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted")
        world.broker.cut("b")
        assert (await world.until("device", 3))["online"] is False
        await world.until("abandoned")  # nobody is left to wait for
        let_go.set()
        world.broker.restore("b")
        await run
    times = [task.time_left_s for task in b.tasks if task.action == "train"]
    assert len(times) >= 2
    assert next(read_journal(world.directory.journal_path))["attempts"] == 2


@pytest.mark.parametrize("persistent", [True, False])
async def test_the_broker_is_restarted_in_a_round(begin: Begin, tmp_path: Path, persistent: bool) -> None:
    world = World(begin(count=2), tmp_path)
    let_go = asyncio.Event()
    slow = world.device("slow", lambda tensors, task: echo(tensors, task) if let_go.is_set() else None)
    async with running(world.device("a"), slow):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted")
        world.broker.restart(persistent=persistent)
        await world.until("disconnected")
        let_go.set()
        await run
    assert [line["event"] for line in read_journal(world.directory.journal_path)] == ["round", "round", "personalized"]


async def test_chunks_that_the_broker_does_not_keep_are_sent_on_request(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path, max_packet=16_384)
    a, b = world.device("a", lambda tensors, task: None), world.device("b", lambda tensors, task: None)
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("opened")
        await a.fetched.wait()
        blob = a.tasks[0].payload
        assert 5 < blob.chunks < 32
        asker = world.broker.link("asker", None)
        await asker.open()
        await asker.subscribe(TOPICS.down("asker"))

        async def ask(digest: str, ranges: Ranges, run_id: str = "run") -> None:
            want = Want(run=run_id, digest=digest, ranges=ranges)
            await asker.publish(TOPICS.up("asker"), encode_message(want))

        await ask("0" * 64, ((0, 5),))
        await ask(blob.digest, ((0, 5),), "another")
        await ask(blob.digest, ((1, 3), (4, 2**31 - 1), (2, 4)))
        sent: list[int] = []
        while len(sent) < blob.chunks - 1:
            if isinstance(event := await asker.receive(), Received):
                chunk = decode_downlink(event.payload)
                assert isinstance(chunk, Chunk)
                sent.append(chunk.index)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert sent == list(range(1, blob.chunks))


async def test_payloads_are_cut_for_the_device_that_takes_least(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    narrow = Capabilities(profile="lte-m", train=True, max_packet=8192)
    useless = Capabilities(profile="sensor", train=True, max_packet=1024)
    devices = [
        world.device("a", capabilities=narrow),
        world.device("useless", capabilities=useless),
        world.device("b"),
    ]
    async with running(*devices):
        await world.coordinator().run()
    assert 4096 < devices[0].tasks[0].payload.chunk < 8192
    assert devices[1].tasks == []
    assert {event["device"]: event["unfit"] for event in world.told("device")}["useless"].startswith("takes packets")


@pytest.mark.parametrize("accepted", [0, 1])
async def test_restarted_in_a_round(begin: Begin, tmp_path: Path, accepted: int) -> None:
    """The same round, the same attempt; what was accepted counts, once."""
    world = World(begin(count=2), tmp_path)
    let_go = asyncio.Event()
    quick = world.device("quick", adding(1) if accepted else lambda tensors, task: None)
    slow = world.device("slow", lambda tensors, task: adding(3)(tensors, task) if let_go.is_set() else None)
    async with running(quick, slow):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted" if accepted else "opened")
        await slow.fetched.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        let_go.set()
        quick.train = adding(1)
        seen = len(world.told("opened"))
        await world.coordinator().run()
    assert [event["round"] for event in world.told("opened")][seen:] == [2]  # round 1 went on
    check_global(world, 2, moved(world.initial, 2))
    check_global(world, 3, moved(world.initial, 4))
    lines = list(read_journal(world.directory.journal_path))
    assert [sorted(entry["device"] for entry in line["accepted"]) for line in lines[:2]] == [["quick", "slow"]] * 2
    assert [line["attempts"] for line in lines[:2]] == [1, 1]


async def test_restarted_in_the_personalization(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    let_go = asyncio.Event()

    def when_told(tensors: Tensors, task: Any) -> Any:
        return echo(tensors, task) if task.action == "train" or let_go.is_set() else None

    async with running(world.device("quick"), world.device("slow", when_told)):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("reported")
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        let_go.set()
        await world.coordinator().run()
    *_, end = read_journal(world.directory.journal_path)
    assert [entry["device"] for entry in end["devices"]] == ["quick", "slow"]
    assert [event["device"] for event in world.told("reported")] == ["quick", "slow"]


async def test_without_a_template_devices_personalize_all_the_same(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    world.directory.template.unlink()

    class NoTemplate:
        def __init__(self, warn: Callable[[str], None]) -> None:
            self.warn = warn

        async def define(self, directory: RunDirectory) -> None:
            pass

        async def template(self) -> None:
            self.warn("no onnx here")

        async def stop(self) -> None:
            pass

    a = world.device("a")
    async with running(a, world.device("b")):
        await world.coordinator(prepare=NoTemplate).run()
    assert a.tasks[-1].action == "personalize"
    assert a.tasks[-1].template is None
    assert world.told("warning")[0]["text"] == "no onnx here"


async def test_a_task_is_never_published_before_its_payload(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=2), tmp_path)
    original, seen = world.broker.publish, []

    def publish(topic: str, payload: bytes, *, retain: bool) -> None:
        if topic.startswith("talaria/task/") and payload:
            blob = decode_task(payload).payload
            there = [name for name in world.broker.retained if name.startswith(f"talaria/blob/{blob.digest}/")]
            seen.append(len(there) == blob.chunks)
        original(topic, payload, retain=retain)

    world.broker.publish = publish  # type: ignore[method-assign]
    async with running(world.device("a"), world.device("b")):
        await world.coordinator().run()
    assert len(seen) >= 6
    assert all(seen)


async def test_other_settings_than_those_of_the_run_are_refused(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(), tmp_path)
    config = world.directory.record().config
    changed = config.model_copy(update={"rounds": config.rounds.model_copy(update={"count": 3})})
    with pytest.raises(ConfigError, match="rounds"):
        await world.coordinator(changed).run()


async def test_a_wrong_setting_leaves_no_run_behind(tmp_path: Path, begin: Begin) -> None:
    world = World(begin(), tmp_path)
    world.directory = RunDirectory(tmp_path / "new")
    wrong = RunConfig.model_validate({"model": {"name": "no-such-model"}})
    with pytest.raises(ConfigError, match="no-such-model"):
        await world.coordinator(wrong).run()
    assert not world.directory.exists


async def test_two_coordinators_do_not_share_a_folder(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(), tmp_path)
    with world.directory.locked(), pytest.raises(StateError, match="in use"):
        await world.coordinator().run()


def test_a_record_comes_back(begin: Begin) -> None:
    record = begin(count=7).record()
    assert isinstance(record, RunRecord)
    assert record.config.rounds.count == 7
