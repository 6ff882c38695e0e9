"""The agent over a broker in memory, with a coordinator that does what the test says and work that echoes."""

import asyncio
from pathlib import Path

import pytest
from echo import DATA, FINE, Echo, retained_presence, running, train
from scripted import ScriptedCoordinator, make_task

from coordinator.broker import free_port
from edge_agent import health
from edge_agent.agent import Agent
from edge_agent.health import Reading
from edge_agent.job import Outcome
from edge_agent.store import Store
from edge_agent.workbench import MARGIN
from shared.codec import encode_message
from shared.config import AgentConfig
from shared.config_base import BrokerSettings
from shared.messages import Blob, Chunk, Failure, Grant, Offer, Presence, Receipt, Report, Want
from shared.mqtt import MqttLink


async def test_a_full_round(config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path) -> None:
    async with running(config, coordinator, echo):
        presence = await coordinator.hears(Presence)
        assert presence.online
        assert presence.capabilities is not None
        assert presence.capabilities.train
        assert presence.capabilities.profile == "small"
        assert presence.capabilities.encodings == ("float32", "float16", "int8", "topk")  # as ethernet likes them
        task = await train(coordinator)
        offer = await coordinator.hears(Offer)
        assert (offer.run, offer.round, offer.blob.size) == ("run", 1, len(DATA))
        assert await coordinator.pull(offer, tmp_path / "update") == DATA
        await coordinator.receipt(offer)
        await train(coordinator, 2)
        await coordinator.hears(Offer, 2)
    assert echo.memories == [None, b"memory of round 1"]
    assert echo.jobs[0].task == task
    assert echo.jobs[0].threads == 1
    assert 0 < echo.jobs[0].deadline_s <= 60
    assert list((config.state_dir / "downloads").iterdir()) == []


async def test_a_report_ends_an_agent_that_serves_once(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    agent = Agent(config, coordinator.broker.link, echo, once=True, look=lambda: FINE)
    serving = asyncio.create_task(agent.run())
    await train(coordinator)
    offer = await coordinator.hears(Offer)
    await coordinator.pull(offer, tmp_path / "update")
    await coordinator.receipt(offer)
    await train(coordinator, 2, action="personalize")
    report = await coordinator.hears(Report)
    assert (report.round, report.examples, report.metrics["accuracy"]) == (2, 12, 0.5)
    assert report.metrics["bytes_down"] >= 2 * len(DATA)
    assert report.metrics["bytes_up"] >= len(DATA)
    assert not serving.done()
    await coordinator.receipt(report)
    await asyncio.wait_for(serving, 10)


async def test_traffic_is_summed_over_restarts(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator)
        offer = await coordinator.hears(Offer)
        await coordinator.pull(offer, tmp_path / "update")
        await coordinator.receipt(offer)
    async with running(config, coordinator, echo):
        await train(coordinator, 2, action="personalize")
        report = await coordinator.hears(Report)
    assert report.metrics["bytes_up"] >= len(DATA)


async def test_time_for_the_upload_is_what_the_last_whole_one_took(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        async with running(config, coordinator, echo):  # a device that lies down after every round
            await train(coordinator, number)
            offer = await coordinator.hears(Offer, number)
            if number == 1:
                await coordinator.pull(offer, tmp_path / "update")
            else:  # the rest of it came in an earlier life
                await coordinator.say(Grant(run="run", digest=offer.blob.digest, ranges=((0, 1),)))
                await coordinator.hears(Chunk, offer.blob.chunks + number - 1)
            await coordinator.receipt(offer)
            await train(coordinator, number, action="personalize")  # once its report is heard, all is settled
            await coordinator.receipt(await coordinator.hears(Report, number))
        store = Store(config.state_dir)
        took = store.upload_s("run")
        store.close()
        if number == 1:
            known = took
            assert known is not None
            assert store.upload_s("another") is None
        assert took == known
        if number > 1:
            job = next(job for job in echo.jobs if (job.task.round, job.task.action) == (number, "train"))
            assert job.reserve_s == pytest.approx(known + MARGIN * job.deadline_s)


async def test_an_offer_without_a_grant_is_repeated(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator)
        first, second = await coordinator.hears(Offer), await coordinator.hears(Offer, 3)
        assert first == second
        assert await coordinator.pull(second, tmp_path / "update") == DATA
    assert len(echo.jobs) == 1


async def test_a_report_without_a_receipt_is_repeated_also_after_a_restart(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator, action="personalize")
        first = await coordinator.hears(Report, 2)
    async with running(config, coordinator, echo, once=True):
        count = len(coordinator.all(Report))
        assert await coordinator.hears(Report, count + 1) == first
        await coordinator.receipt(first)
    assert len(echo.jobs) == 1


async def test_a_task_delivered_twice_is_done_once(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    echo.gate.clear()
    async with running(config, coordinator, echo):
        task = await train(coordinator)
        await echo.begins()
        for left in (60.0, 30.0):
            await coordinator.ask(task.model_copy(update={"time_left_s": left}))
        echo.gate.set()
        offer = await coordinator.hears(Offer)
        await coordinator.pull(offer, tmp_path / "update")
        await coordinator.receipt(offer)
        await coordinator.ask(task)
        await train(coordinator, 2, data=DATA[::-1])
        await echo.begins(2)
    assert [job.task.round for job in echo.jobs] == [1, 2]


async def test_a_restart_in_the_upload_sends_only_what_is_missing(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator)
        offer = await coordinator.hears(Offer)
        assert offer.blob.chunks == 8
        await coordinator.say(Grant(run="run", digest=offer.blob.digest, ranges=((0, 2), (5, 6))))
        await coordinator.hears(Chunk, 3)
    async with running(config, coordinator, echo):
        again = await coordinator.hears(Offer, len(coordinator.all(Offer)) + 1)
        assert again == offer
        await coordinator.say(Grant(run="run", digest=offer.blob.digest, ranges=((2, 5), (6, 8))))
        assert await coordinator.assembled(offer, tmp_path / "update") == DATA
    assert [chunk.index for chunk in coordinator.all(Chunk)] == [0, 1, 5, 2, 3, 4, 6, 7]
    assert len(echo.jobs) == 1


async def test_a_restart_in_the_download_fetches_only_what_is_missing(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    blob = await coordinator.publish(DATA)
    topics = [coordinator.topics.chunk(blob.digest, 0, index) for index in range(blob.chunks)]
    kept = {topic: coordinator.broker.retained[topic] for topic in topics}
    for topic in topics[5:]:
        del coordinator.broker.retained[topic]
    await coordinator.ask(make_task(1, payload=blob))
    async with running(config, coordinator, echo):
        assert (await coordinator.hears(Want)).ranges == ((5, 8),)
    coordinator.broker.retained = {
        topic: payload for topic, payload in coordinator.broker.retained.items() if topic not in topics
    }
    async with running(config, coordinator, echo):
        want = await coordinator.hears(Want, len(coordinator.all(Want)) + 1)
        assert want.ranges == ((5, 8),)
        for index in range(5, 8):
            await coordinator.say(Chunk(digest=blob.digest, index=index, data=kept[topics[index]]))
        await coordinator.hears(Offer)
    assert len(echo.jobs) == 1


async def test_a_new_coordinator_gets_the_offer_at_once(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config.model_copy(update={"stall_s": 3600.0}), coordinator, echo):
        await train(coordinator)
        first = await coordinator.hears(Offer)
        await coordinator.online(epoch=2)
        assert await coordinator.hears(Offer, 2) == first


async def test_a_new_round_overtakes_the_work(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    echo.gate.clear()
    async with running(config, coordinator, echo):
        await train(coordinator, 1)
        await echo.begins()
        await train(coordinator, 2, data=DATA[::-1])
        await echo.begins(2)
        echo.gate.set()
        assert (await coordinator.hears(Offer)).round == 2
    assert echo.cancelled == [1]
    assert echo.memories == [None, None], "nothing of the cancelled round is remembered"


async def test_a_withdrawn_task_stops_the_work(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    echo.gate.clear()
    async with running(config, coordinator, echo):
        task = await train(coordinator)
        await echo.begins()
        await coordinator.withdraw()
        await echo.is_cancelled()
        echo.gate.set()
        await coordinator.ask(task)
        await coordinator.hears(Offer)
    assert echo.cancelled == [1]


async def test_a_refused_update_is_forgotten_and_the_memory_kept(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator)
        await coordinator.receipt(await coordinator.hears(Offer), accepted=False, code="stale")
        await train(coordinator, 2)
        assert (await coordinator.hears(Offer, 1 + len(coordinator.all(Offer)))).round == 2
    assert echo.memories == [None, b"memory of round 1"]


async def test_memory_of_another_run_is_not_used(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator)
        await coordinator.hears(Offer)
        await train(coordinator, run="another")
        await echo.begins(2)
    assert echo.memories == [None, None]


@pytest.mark.parametrize(
    ("fails", "code"),
    [
        (Outcome(code="out_of_memory", reason="too big"), "out_of_memory"),
        (OSError("no space left"), "agent"),
        (ValueError("a bug"), "agent"),
    ],
)
async def test_a_failure_is_reported_and_the_next_round_works(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, fails: Outcome | Exception, code: str
) -> None:
    echo.fails = fails
    async with running(config, coordinator, echo):
        await train(coordinator)
        failure = await coordinator.hears(Failure)
        assert (failure.run, failure.round, failure.code) == ("run", 1, code)
        await coordinator.receipt(failure)
        echo.fails = None
        await train(coordinator, 2)
        assert (await coordinator.hears(Offer)).round == 2


async def test_a_task_whose_time_is_over_is_not_begun(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config, coordinator, echo):
        await train(coordinator, time_left_s=0.0)
        assert (await coordinator.hears(Failure)).code == "out_of_time"
    assert echo.jobs == []


async def test_a_payload_beyond_the_device_is_refused_unfetched(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config, coordinator, echo):
        await coordinator.ask(make_task(payload=Blob(digest="a" * 64, size=2**40, chunk=2**20)))
        failure = await coordinator.hears(Failure)
        assert "memory" in failure.reason
    assert list((config.state_dir / "downloads").iterdir()) == []


async def test_a_payload_that_is_not_what_was_announced(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    blob = await coordinator.publish(DATA)
    topic = coordinator.topics.chunk(blob.digest, 0, 3)
    honest = coordinator.broker.retained[topic]
    coordinator.broker.retained[topic] = honest[::-1]
    async with running(config, coordinator, echo):
        await coordinator.ask(make_task(payload=blob))
        failure = await coordinator.hears(Failure)
        assert failure.code == "digest_mismatch"
        await coordinator.receipt(failure)
        coordinator.broker.retained[topic] = honest
        await coordinator.ask(make_task(payload=blob, time_left_s=50.0))
        await coordinator.hears(Offer)
    assert len(echo.jobs) == 1


async def test_garbage_is_counted_and_harmless(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(config, coordinator, echo) as agent:
        await coordinator.hears(Presence)
        garbage = [
            b"\x00",
            b"\xff" * 300,
            encode_message(Receipt(run="run", round=1, answers="offer", accepted=True))[:-1],
            b"\x81\xa1v\x02",
        ]
        link = coordinator.broker
        for payload in garbage:
            link.publish(coordinator.topics.down("device"), payload, retain=False)
            link.publish(coordinator.topics.task("device"), payload, retain=False)
            link.publish(coordinator.topics.coordinator, payload, retain=False)
        await train(coordinator)
        await coordinator.hears(Offer)
        assert agent.refused.total() == 3 * len(garbage)


async def test_an_unhealthy_device_says_so_and_refuses(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "POLL_S", 0.01)
    reading = Reading(temperature_c=120)
    async with running(config, coordinator, echo, look=lambda: reading):
        presence = await coordinator.hears(Presence)
        assert presence.capabilities is not None
        assert not presence.capabilities.train
        assert "120 C" in presence.capabilities.reason
        task = await train(coordinator)
        failure = await coordinator.hears(Failure)
        assert failure.code == "unhealthy"
        await coordinator.receipt(failure)
        reading = FINE
        presence = await coordinator.hears(Presence, 2)
        assert presence.capabilities is not None
        assert presence.capabilities.train
        await coordinator.ask(task.model_copy(update={"time_left_s": 50.0}))
        await coordinator.hears(Offer)


async def test_an_emulated_device_does_not_answer_for_its_machine(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    emulated = config.model_copy(update={"health": False})
    async with running(emulated, coordinator, echo, look=lambda: Reading(temperature_c=120, load_per_core=99)):
        await train(coordinator)
        await coordinator.hears(Offer)


async def test_work_stops_when_the_device_gets_hot(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "POLL_S", 0.01)
    reading = FINE
    echo.gate.clear()
    async with running(config, coordinator, echo, look=lambda: reading):
        await train(coordinator)
        await echo.begins()
        reading = Reading(temperature_c=120)
        assert (await coordinator.hears(Failure)).code == "unhealthy"
    assert echo.cancelled == [1]


async def test_presence_over_a_lost_connection(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    client = "talaria-device"
    async with running(config.model_copy(update={"stall_s": 3600.0}), coordinator, echo):
        await train(coordinator)
        await coordinator.hears(Offer)
        coordinator.broker.cut(client)
        death = await coordinator.hears(Presence, 2)
        assert not death.online
        coordinator.broker.restore(client)
        birth = await coordinator.hears(Presence, 3)
        assert birth.online
        assert birth.epoch == death.epoch
        await coordinator.hears(Offer, 2)
        coordinator.broker.restart(persistent=False)
        await coordinator.hears(Offer, 3)
        await coordinator.receipt(coordinator.all(Offer)[0])
        await train(coordinator, 2)
        assert (await coordinator.hears(Offer, 4)).round == 2


async def test_a_stop_says_goodbye(config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo) -> None:
    echo.gate.clear()
    async with running(config, coordinator, echo):
        await train(coordinator)
        await echo.begins()
        epoch = retained_presence(coordinator).epoch
    goodbye = retained_presence(coordinator)
    assert not goodbye.online
    assert goodbye.epoch == epoch
    assert echo.cancelled == [1]
    store = Store(config.state_dir)
    assert store.epoch == epoch + 1
    store.close()


async def test_a_stop_without_a_broker_is_bounded(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with asyncio.timeout(10):
        async with running(config, coordinator, echo):
            await train(coordinator)
            await coordinator.hears(Offer)
            coordinator.broker.cut("talaria-device")


async def test_a_stop_before_a_broker_was_ever_there_is_heard(
    config: AgentConfig, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.agent.GOODBYE_S", 0.1)
    settings = BrokerSettings(url=f"mqtt://127.0.0.1:{free_port()}")
    agent = Agent(config, lambda client_id, will: MqttLink(settings, client_id, will), echo, look=lambda: FINE)
    async with asyncio.timeout(10):
        run = asyncio.create_task(agent.run())
        await asyncio.wait({run}, timeout=0.1)  # it has begun, and there is nobody whom it could reach
        agent.stop()
        await run
