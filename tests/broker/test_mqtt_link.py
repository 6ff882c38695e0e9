"""MqttLink through a real Mosquitto: what shared.link.Link promises, under MQTT 5 and under 3.1.1."""

import asyncio
import subprocess
import sys

import pytest
from brokers import PATIENCE_S, event, message, online

from shared.errors import LinkClosed, LinkError, PacketTooLarge
from shared.link import DEFAULT_MAX_PACKET, Disconnected, Received, Will

VERSIONS = pytest.mark.parametrize("versions", [(5,), (4,)], ids=["mqtt5", "mqtt3.1.1"])


@VERSIONS
async def test_a_message_arrives_as_it_was_sent(mosquitto, link, versions):
    url = mosquitto().url
    sender, receiver = await link(url, "sender", versions=versions), await link(url, "receiver", versions=versions)
    await receiver.subscribe("a/+/c")
    payload = bytes(range(256)) * 400
    await sender.publish("a/b/c", payload)
    assert await event(receiver, Received) == Received("a/b/c", payload, retained=False)


@VERSIONS
async def test_what_is_retained_comes_with_each_new_subscription(mosquitto, link, versions):
    url = mosquitto().url
    sender, receiver = await link(url, "sender", versions=versions), await link(url, "receiver", versions=versions)
    await sender.publish("state", b"old", retain=True)
    await sender.publish("state", b"new", retain=True)
    for _ in range(2):
        await receiver.subscribe("state")
        assert await event(receiver, Received) == Received("state", b"new", retained=True)
        await receiver.unsubscribe("state")
    await sender.publish("state", b"", retain=True)
    await receiver.subscribe("state", "other")
    await sender.publish("other", b"live")
    assert await message(receiver) == ("other", b"live")


@VERSIONS
async def test_thousands_of_messages_arrive_in_order(mosquitto, link, versions):
    url = mosquitto().url
    sender, receiver = await link(url, "sender", versions=versions), await link(url, "receiver", versions=versions)
    await receiver.subscribe("n")
    publishing = asyncio.gather(*(sender.publish("n", str(n).encode()) for n in range(3000)))
    assert [int((await message(receiver))[1]) for _ in range(3000)] == list(range(3000))
    await publishing


@VERSIONS
async def test_a_session_keeps_what_came_while_its_client_was_away(mosquitto, link, versions):
    url = mosquitto().url
    sender, first = await link(url, "sender", versions=versions), await link(url, "device", versions=versions)
    assert not (await online(first)).session_present
    await first.subscribe("down")
    await first.close()
    await sender.publish("down", b"while you were away")
    second = await link(url, "device", versions=versions)
    assert (await online(second)).session_present
    assert await message(second) == ("down", b"while you were away")


@VERSIONS
async def test_what_a_crash_interrupts_is_delivered_again(mosquitto, link, versions):
    """Acknowledged is what was followed by another receive(): the second message was still in hand."""
    url = mosquitto().url
    sender, first = await link(url, "sender", versions=versions), await link(url, "device", versions=versions)
    await first.subscribe("down")
    await sender.publish("down", b"one")
    await sender.publish("down", b"two")
    assert await message(first) == ("down", b"one")
    assert await message(first) == ("down", b"two")
    await first.close()
    second = await link(url, "device", versions=versions)
    assert await message(second) == ("down", b"two")


@VERSIONS
async def test_a_slow_reader_holds_the_broker_back(mosquitto, link, versions):
    """The broker has at most its window of unacknowledged messages with us: 32 as we ask, 20 by its own default."""
    url = mosquitto().url
    sender, reader = await link(url, "sender", versions=versions), await link(url, "reader", versions=versions)
    await reader.subscribe("n", "last")
    for n in range(200):
        await sender.publish("n", str(n).encode())
    assert len(reader._events) <= 33
    assert [int((await message(reader))[1]) for _ in range(200)] == list(range(200))


@VERSIONS
async def test_a_broker_that_forgot_everything_gets_our_subscriptions_again(mosquitto, link, versions):
    broker = mosquitto()
    sender = await link(broker.url, "sender", versions=versions)
    receiver = await link(broker.url, "receiver", versions=versions)
    await receiver.subscribe(*(f"topic/{n}" for n in range(20)))
    broker.kill()
    await event(receiver, Disconnected)
    broker.start()
    assert not (await online(receiver)).session_present
    publishing = asyncio.create_task(sender.publish("topic/19", b"still there?", retain=True))
    assert await message(receiver) == ("topic/19", b"still there?")
    await publishing


@VERSIONS
async def test_a_broker_that_remembers_gets_nothing_twice(mosquitto, link, versions):
    broker = mosquitto(persistent=True)
    receiver = await link(broker.url, "receiver", versions=versions)
    sender = await link(broker.url, "sender", versions=versions)
    await sender.publish("state", b"kept", retain=True)
    await receiver.subscribe("state", "live")
    assert await message(receiver) == ("state", b"kept")
    broker.stop()
    await event(receiver, Disconnected)
    broker.start()
    assert (await online(receiver)).session_present
    await sender.publish("live", b"next")
    last = await message(receiver)
    while last == ("state", b"kept"):  # it was in hand when the broker stopped
        last = await message(receiver)
    assert last == ("live", b"next")


@VERSIONS
async def test_publishing_into_an_outage_completes_after_it(mosquitto, link, versions):
    broker = mosquitto()
    sender = await link(broker.url, "sender", versions=versions)
    await online(sender)
    broker.kill()
    await event(sender, Disconnected)
    publishing = [asyncio.create_task(sender.publish(f"n/{n}", b"x", retain=True)) for n in range(50)]
    subscribing = asyncio.create_task(sender.subscribe("n/+"))
    await asyncio.wait(publishing, timeout=0.05)
    assert not any(task.done() for task in publishing)
    broker.start()
    await asyncio.gather(*publishing, subscribing)
    assert {(await message(sender))[0] for _ in range(50)} == {f"n/{n}" for n in range(50)}


async def test_an_outage_is_told_once_and_the_url_named(link):
    lonely = await link("mqtt://127.0.0.1:1", "lonely")
    reason = (await event(lonely, Disconnected)).reason
    assert "mqtt://127.0.0.1:1" in reason
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await lonely.receive()


async def test_the_limit_of_the_broker_is_kept(mosquitto, link):
    url = mosquitto("max_packet_size 102400").url
    sender, receiver = await link(url, "sender"), await link(url, "receiver")
    assert (await online(sender)).max_packet == sender.max_packet == 102_400
    await receiver.subscribe("t")
    with pytest.raises(PacketTooLarge, match="102400"):
        await sender.publish("t", bytes(102_400))
    largest = 102_400 - 11
    await sender.publish("t", bytes(largest))
    assert await message(receiver) == ("t", bytes(largest))


async def test_an_oversize_packet_that_the_broker_answers_by_hanging_up_is_given_up(mosquitto, link):
    """MQTT 3.1.1 announces no limit: without the guard the link would reconnect and send it again, for ever."""
    url = mosquitto("max_packet_size 100000").url
    sender = await link(url, "sender", versions=(4,))
    receiver = await link(url, "receiver")
    await receiver.subscribe("t")
    before = [asyncio.create_task(sender.publish("t", b"before %d" % n)) for n in range(3)]
    poison = asyncio.create_task(sender.publish("t", bytes(110_000)))
    behind = [asyncio.create_task(sender.publish("t", b"behind %d" % n)) for n in range(3)]
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(PacketTooLarge):
            await poison
        await asyncio.gather(*before, *behind)
    missing = {b"%s %d" % (when, n) for when in (b"before", b"behind") for n in range(3)}
    while missing:
        missing.discard((await message(receiver))[1])
    assert sender.max_packet < 60_000 < 110_000 < DEFAULT_MAX_PACKET


async def test_the_will_speaks_for_a_killed_client_only(mosquitto, link):
    url = mosquitto().url
    watcher = await link(url, "watcher")
    await watcher.subscribe("presence/+")
    polite = await link(url, "polite", Will("presence/polite", b"dead"))
    await online(polite)
    await polite.close()
    program = f"""
import asyncio
from shared.config_base import BrokerSettings
from shared.link import Will
from shared.mqtt import MqttLink

async def live():
    link = MqttLink(BrokerSettings(url={url!r}), "victim", Will("presence/victim", b"dead"))
    await link.open()
    await link.receive()
    print("online", flush=True)
    await asyncio.Event().wait()

asyncio.run(live())
"""
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    assert await victim.stdout.readline() == b"online\n"
    victim.kill()
    assert await message(watcher) == ("presence/victim", b"dead")
    await victim.wait()
    late = await link(url, "late")
    await late.subscribe("presence/+")
    assert await event(late, Received) == Received("presence/victim", b"dead", retained=True)


async def test_a_second_client_of_the_same_name_takes_over(mosquitto, link):
    url = mosquitto().url
    first = await link(url, "twin")
    await online(first)
    second = await link(url, "twin")
    await online(second)
    await event(first, Disconnected)
    await first.close()
    await second.publish("t", b"alive")


@VERSIONS
async def test_wrong_credentials_end_it(mosquitto, link, tmp_path, versions):
    passwords, right, wrong = tmp_path / "passwords", tmp_path / "right", tmp_path / "wrong"
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), "device", "secret word"]
    assert await (await asyncio.create_subprocess_exec(*command)).wait() == 0
    right.write_text("secret word\nanything\n")
    wrong.write_text("guess\n")
    url = mosquitto("allow_anonymous false", f"password_file {passwords}").url
    good = await link(url, "good", versions=versions, username="device", password_file=right)
    await online(good)
    bad = await link(url, "bad", versions=versions, username="device", password_file=wrong)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LinkError, match=r"broker\.password_file"):
            await bad.publish("t", b"waits for a connection that never comes")
        with pytest.raises(LinkError, match="'device'"):
            await bad.receive()


async def test_a_password_file_that_cannot_be_read_is_named(mosquitto, link, tmp_path):
    broken = await link(mosquitto().url, "broken", username="device", password_file=tmp_path / "nowhere")
    with pytest.raises(LinkError, match="nowhere"):
        await broken.receive()


async def test_a_publish_that_the_broker_does_not_allow_fails_with_its_reason(mosquitto, link, tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic read #\ntopic write allowed/#\n")
    sender = await link(mosquitto(f"acl_file {acl}").url, "sender")
    await sender.publish("allowed/x", b"")
    with pytest.raises(LinkError, match=r"Not authorized \(0x87\)"):
        await sender.publish("forbidden/x", b"")


async def test_closing_ends_every_wait(mosquitto, link):
    broker = mosquitto()
    closing = await link(broker.url, "closing")
    await online(closing)
    broker.kill()
    await event(closing, Disconnected)
    waits = [
        asyncio.ensure_future(wait) for wait in (closing.publish("t", b"x"), closing.subscribe("t"), closing.receive())
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await closing.close()
        for wait in waits:
            with pytest.raises(LinkClosed, match="closing"):
                await wait
    for late in (closing.publish("t", b"x"), closing.subscribe("t"), closing.receive()):
        with pytest.raises(LinkClosed):
            await late
