"""MqttLink against brokers that no test bed offers: they hang up, stay silent, refuse, or send garbage."""

import asyncio
import itertools
import struct

import pytest
from brokers import PATIENCE_S, Peer, event, message, number_of, online

from shared.errors import LinkError, PacketTooLarge
from shared.link import Disconnected

CONNACK, PUBLISH, PUBACK, SUBACK, DISCONNECT = 0x20, 0x32, 0x40, 0x90, 0xE0


async def drain(peer: Peer) -> None:
    while True:
        await peer.packet()


async def test_no_more_is_in_flight_than_the_broker_allows(fake_broker, link):
    seen: list[int] = []
    more = asyncio.Event()
    proceed = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.greet(b"\x21" + struct.pack("!H", 5))  # Receive Maximum
        while True:
            _, body = await peer.packet()
            seen.append(number_of(body))
            if len(seen) == 5:
                more.set()
                await proceed.wait()
            if len(seen) >= 5:
                peer.send(PUBACK, struct.pack("!H", seen[len(seen) - 5]))

    sender = await link(await fake_broker(behave), "sender")
    publishing = [asyncio.create_task(sender.publish("t", b"x")) for _ in range(30)]
    async with asyncio.timeout(PATIENCE_S):
        await more.wait()
        assert sender._outbox.in_flight == 5
        proceed.set()
        await asyncio.wait(publishing[:26], return_when=asyncio.ALL_COMPLETED)
    assert sender._outbox.in_flight == 4
    assert seen == list(range(1, 31))
    await sender.close()
    await asyncio.gather(*publishing, return_exceptions=True)


async def test_what_was_not_acknowledged_is_sent_again_in_order(fake_broker, link):
    connections = itertools.count()
    arrived: list[bytes] = []

    async def behave(peer: Peer) -> None:
        lives = next(connections)
        await peer.greet()
        for _ in range(4 if lives == 0 else 100):
            _, body = await peer.packet()
            if lives:
                arrived.append(body[-1:])
                peer.send(PUBACK, struct.pack("!H", number_of(body)))

    sender = await link(await fake_broker(behave), "sender")
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(sender.publish("t", payload) for payload in (b"1", b"2", b"3", b"4", b"5")))
    assert arrived == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_disconnect_for_an_oversize_packet_fails_that_packet_at_once(fake_broker, link):
    connections = itertools.count()

    async def behave(peer: Peer) -> None:
        first = next(connections) == 0
        await peer.greet()
        while True:
            _, body = await peer.packet()
            if first:
                peer.send(DISCONNECT, b"\x95\x00")
                return
            peer.send(PUBACK, struct.pack("!H", number_of(body)))

    sender = await link(await fake_broker(behave), "sender")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(PacketTooLarge):
            await sender.publish("t", bytes(50_000))
        assert sender.max_packet < 50_000
        await sender.publish("t", bytes(1000))


@pytest.mark.parametrize("farewell", [b"", b"\x20\x02\x00\x01"], ids=["hangs up", "refuses the version"])
async def test_a_broker_without_mqtt_5_is_spoken_to_in_311(fake_broker, link, farewell):
    levels: list[int] = []

    async def behave(peer: Peer) -> None:
        _, body = await peer.packet()
        levels.append(body[6])
        if body[6] == 5:
            peer.writer.write(farewell)
            return
        peer.send(CONNACK, b"\x00\x00")
        await drain(peer)

    old = await link(await fake_broker(behave), "old")
    await online(old)
    assert levels == [5, 4]


async def test_a_version_that_was_agreed_stays_when_the_broker_stumbles(fake_broker, link):
    levels: list[int] = []

    async def behave(peer: Peer) -> None:
        if len(levels) in (1, 2):  # it hangs up before CONNACK, as a broker that is starting
            levels.append((await peer.packet())[1][6])
        else:
            levels.append(await peer.greet())

    stubborn = await link(await fake_broker(behave), "stubborn")
    await online(stubborn)
    await online(stubborn)
    assert levels[:4] == [5, 5, 5, 5]


async def test_a_broker_without_retained_messages_is_refused(fake_broker, link):
    async def behave(peer: Peer) -> None:
        await peer.greet(b"\x25\x00")
        await drain(peer)

    useless = await link(await fake_broker(behave), "useless")
    with pytest.raises(LinkError, match="retained"):
        await useless.receive()


async def test_a_refused_subscription_fails_with_its_filter(fake_broker, link):
    async def behave(peer: Peer) -> None:
        await peer.greet()
        _, body = await peer.packet()
        peer.send(SUBACK, body[:2] + b"\x00" + b"\x01\x87")
        await drain(peer)

    refused = await link(await fake_broker(behave), "refused")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LinkError, match="'b': Not authorized"):
            await refused.subscribe("a", "b")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x32\x03\x00\xff\x00",
        b"\x32\x05\x00\x01t\x00\x01\x99",
        b"\x40\x01\x00",
        b"\x90\x00",
        b"\x20\x01\x00",
        b"\xe0\x02\x95\x7f",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_garbage_costs_the_connection_and_nothing_else(fake_broker, link, garbage):
    connections = itertools.count()

    async def behave(peer: Peer) -> None:
        first = next(connections) == 0
        await peer.greet()
        if first:
            peer.writer.write(garbage)
            return
        await peer.packet()  # our subscription
        peer.send(SUBACK, b"\x00\x01\x00\x01")
        peer.send(PUBLISH, b"\x00\x01t\x00\x09\x00fine")
        await drain(peer)

    brave = await link(await fake_broker(behave), "brave")
    await online(brave)
    await event(brave, Disconnected)
    await brave.subscribe("t")
    assert await message(brave) == ("t", b"fine")


async def test_a_topic_that_is_not_text_is_passed_over(fake_broker, link):
    async def behave(peer: Peer) -> None:
        await peer.greet()
        peer.send(PUBLISH, b"\x00\x01\xff\x00\x07\x00bad")
        peer.send(PUBLISH, b"\x00\x01t\x00\x08\x00good")
        await drain(peer)

    assert await message(await link(await fake_broker(behave), "careful")) == ("t", b"good")


async def test_silence_after_a_publish_is_a_dead_connection(fake_broker, link, monkeypatch):
    """A broker that answers pings but never a publish; the wait is cut short by a clock that runs fast."""
    connections = itertools.count()

    async def behave(peer: Peer) -> None:
        silent = next(connections) == 0
        await peer.greet()
        while True:
            kind, body = await peer.packet()
            if kind == 12:
                peer.send(0xD0, b"")
            elif not silent:
                peer.send(PUBACK, struct.pack("!H", number_of(body)))

    loop = asyncio.get_running_loop()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() * 20)
    sender = await link(await fake_broker(behave), "sender", keepalive_s=5)
    await sender.publish("t", b"x")
    assert next(connections) >= 2
