"""Two clients of one name: a broker has one place for them. They must not fight for it, and somebody must be told."""

import asyncio
import logging
from typing import Any

from brokers import Peer, event, online
from fortress import TOPICS

from coordinator.chronicle import Chronicle
from coordinator.engine import RoundEngine
from coordinator.fleet import Fleet
from coordinator.inbox import Inbox
from shared.codec import encode_message
from shared.config_base import BrokerSettings
from shared.config_rounds import RoundSettings
from shared.link import Connected, Disconnected, Received
from shared.messages import Presence
from shared.mqtt_patience import FIRST_TRUCE_S, LONGEST_DELAY_S, LONGEST_TRUCE_S, SUSPICIOUS, Patience


async def test_two_with_one_certificate_slow_down_and_say_what_is_wrong(fortress, link, caplog):
    """Mosquitto 2.0.11 does not say why it hangs up: that it does so time and again tells."""
    one = await link(fortress.settings("kitchen"))
    await online(one)
    two = await link(fortress.settings("kitchen"))
    greetings = 0

    async def count(each) -> None:
        nonlocal greetings
        while True:
            match await each.receive():
                case Connected():
                    greetings += 1
                case Disconnected(reason) if "does another client have our certificate" in reason:
                    return

    loop = asyncio.get_running_loop()
    started = loop.time()
    tasks = [asyncio.create_task(count(each)) for each in (one, two)]
    await asyncio.wait(tasks, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert any(task.done() and task.exception() is None for task in tasks), "said within a minute"
    for task in tasks:
        task.cancel()
    assert greetings <= 2 * SUSPICIOUS + 2, f"{greetings} connections in {loop.time() - started:.1f} s"


async def test_who_is_told_that_it_was_taken_over_leaves_the_place_for_a_while(tmp_path, link, caplog):
    """DISCONNECT with reason 0x8e, as other brokers send it."""
    greeted: list[float] = []
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.greet()
        greeted.append(loop.time())
        peer.send(0xE0, b"\x8e\x00")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        ousted = await link(BrokerSettings(url=f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        with caplog.at_level(logging.WARNING):
            assert "another client took our place" in (await event(ousted, Disconnected)).reason
        assert any("another client took our place" in record.message for record in caplog.records)
        await asyncio.sleep(1)  # without the truce it would be back within a quarter of a second
        assert len(greeted) == 1


def test_truces_grow_and_are_bounded_and_are_over_when_a_connection_lasted():
    patience = Patience()
    delays = [patience.delay(1.0, taken_over=True) for _ in range(12)]
    assert FIRST_TRUCE_S / 2 <= delays[0] <= FIRST_TRUCE_S
    assert all(LONGEST_TRUCE_S / 2 <= each <= LONGEST_TRUCE_S for each in delays[-3:])
    assert patience.suspicion
    assert patience.delay(LONGEST_TRUCE_S + 1, taken_over=True) <= FIRST_TRUCE_S
    assert patience.delay(LONGEST_TRUCE_S + 1) <= LONGEST_DELAY_S
    assert not patience.suspicion


def test_a_broker_that_is_away_in_between_is_not_suspected():
    patience = Patience()
    for _ in range(3 * SUSPICIOUS):
        assert patience.delay(1.0) <= LONGEST_DELAY_S
        patience.delay(None)
        assert not patience.suspicion


def test_no_device_waits_longer_because_of_a_suspicion():
    patience = Patience()
    assert all(patience.delay(1.0) <= LONGEST_DELAY_S for _ in range(100))
    assert patience.suspicion


async def test_the_coordinator_sees_two_agents_of_one_name_and_says_so_once():
    told: list[dict[str, Any]] = []
    fleet = Fleet()
    jobs: asyncio.Queue[Any] = asyncio.Queue()
    inbox = Inbox(
        topics=TOPICS,
        engine=RoundEngine("run", RoundSettings()),
        fleet=fleet,
        chronicle=Chronicle(told.append, fleet, lambda: 0.0),
        answer=lambda device, message: None,
        supply=lambda device, want: None,
        spawn=lambda job: None,
        jobs=jobs,
        clock=lambda: 0.0,
    )

    def hear(device: str, epoch: int, *, online: bool = True) -> None:
        inbox.receive(Received(TOPICS.presence(device), encode_message(Presence(online=online, epoch=epoch))))

    for epoch in (4, 5, 5, 6):
        hear("hall", epoch)
    hear("hall", 4, online=False)  # a death that the broker tells late is nothing odd
    assert not [event for event in told if event["event"] == "warning"]
    for epoch in (9, 5, 9, 5, 9, 5):
        hear("kitchen", epoch)
    (warning,) = [event for event in told if event["event"] == "warning"]
    assert "device kitchen: start 5 came after start 9: two agents use its name" in warning["text"]
    assert fleet["kitchen"].epoch == 9, "the newest start counts"
