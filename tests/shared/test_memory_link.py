"""The broker in memory keeps the promises of shared.link, and causes accidents on request."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LinkClosed, PacketTooLarge
from shared.link import Connected, Disconnected, Link, LinkEvent, Received, Will
from shared.memory_link import MemoryBroker, matches


async def opened(broker: MemoryBroker, client_id: str, *filters: str, will: Will | None = None) -> Link:
    link = broker.link(client_id, will)
    await link.open()
    assert isinstance(await link.receive(), Connected)
    await link.subscribe(*filters)
    return link


async def waiting(link: Link) -> list[LinkEvent]:
    """The events that are there now."""
    events = []
    try:
        while True:
            async with asyncio.timeout(0):
                events.append(await link.receive())
    except TimeoutError:
        return events


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "/b", True),
        ("#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b", False),
        ("a/+/c", "a//c", True),
        ("+/x", "$SYS/x", False),
        ("#", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_filters_match_as_in_mqtt(pattern, topic, expected):
    assert matches(pattern.split("/"), topic.split("/")) is expected


LEVELS = st.lists(st.text("ab", max_size=2), min_size=1, max_size=5)


@given(LEVELS, st.data())
def test_a_topic_is_matched_by_each_of_its_generalizations(topic, data):
    general = [data.draw(st.sampled_from([level, "+"])) for level in topic]
    assert matches(general, topic)
    cut = data.draw(st.integers(0, len(topic)))
    assert matches([*general[:cut], "#"], topic)


async def test_a_message_comes_once_however_many_filters_match():
    broker = MemoryBroker()
    receiver = await opened(broker, "r", "a/+", "a/b", "#")
    sender = await opened(broker, "s")
    await sender.publish("a/b", b"1")
    assert await waiting(receiver) == [Received("a/b", b"1")]


async def test_retained_messages_come_with_a_subscription_until_they_are_cleared():
    broker = MemoryBroker()
    sender = await opened(broker, "s")
    await sender.publish("t/1", b"old", retain=True)
    await sender.publish("t/1", b"new", retain=True)
    await sender.publish("t/2", b"live")
    receiver = await opened(broker, "r", "t/+")
    assert await waiting(receiver) == [Received("t/1", b"new", retained=True)]
    await sender.publish("t/1", b"", retain=True)
    await receiver.unsubscribe("t/+")
    await receiver.subscribe("t/+")
    assert await waiting(receiver) == [Received("t/1", b"")]
    assert broker.retained == {}


async def test_a_session_queues_while_its_client_is_away():
    broker = MemoryBroker()
    receiver, sender = await opened(broker, "r", "t"), await opened(broker, "s")
    await receiver.close()
    await sender.publish("t", b"1")
    again = broker.link("r")
    await again.open()
    assert await waiting(again) == [Connected(True, broker.max_packet), Received("t", b"1")]


async def test_the_will_is_published_for_a_cut_and_not_for_a_goodbye():
    broker = MemoryBroker()
    watcher = await opened(broker, "w", "p/+")
    polite = await opened(broker, "polite", will=Will("p/polite", b"dead"))
    victim = await opened(broker, "victim", will=Will("p/victim", b"dead"))
    await polite.close()
    broker.cut("victim")
    assert await waiting(watcher) == [Received("p/victim", b"dead")]
    assert broker.retained == {"p/victim": b"dead"}
    assert [type(event) for event in await waiting(victim)] == [Disconnected]


async def test_what_a_cut_link_publishes_arrives_after_it_is_restored():
    broker = MemoryBroker()
    receiver, sender = await opened(broker, "r", "t"), await opened(broker, "s")
    broker.cut("s")
    publishing = asyncio.create_task(sender.publish("t", b"late"))
    assert await waiting(receiver) == []
    broker.restore("s")
    await publishing
    assert await waiting(receiver) == [Received("t", b"late")]


async def test_a_second_client_of_the_same_name_takes_over():
    broker = MemoryBroker()
    first = await opened(broker, "twin", "t")
    second = broker.link("twin")
    await second.open()
    assert [type(event) for event in await waiting(first)] == [Disconnected]
    await (await opened(broker, "s")).publish("t", b"1")
    assert await waiting(second) == [Connected(True, broker.max_packet), Received("t", b"1")]


@pytest.mark.parametrize("persistent", [True, False])
async def test_after_a_restart_subscriptions_work_and_retained_messages_are_kept_or_not(persistent):
    broker = MemoryBroker()
    receiver, sender = await opened(broker, "r", "t", "late"), await opened(broker, "s", will=Will("t", b"dead"))
    await sender.publish("state", b"1", retain=True)
    broker.restart(persistent=persistent)
    await sender.publish("t", b"2")
    lost, back, received = await waiting(receiver)
    assert isinstance(lost, Disconnected)
    assert back == Connected(persistent, broker.max_packet)
    assert received == Received("t", b"2")
    assert broker.retained == ({"state": b"1"} if persistent else {})


async def test_the_packet_limit_is_kept():
    broker = MemoryBroker(max_packet=2000)
    link = await opened(broker, "c", "t")
    assert link.max_packet == 2000
    with pytest.raises(PacketTooLarge, match="2000"):
        await link.publish("t", bytes(2000))
    await link.publish("t", bytes(1900))
    assert await waiting(link) == [Received("t", bytes(1900))]


async def test_closing_ends_every_wait():
    broker = MemoryBroker()
    link = await opened(broker, "c")
    broker.cut("c")
    await waiting(link)
    waits = [asyncio.ensure_future(wait) for wait in (link.receive(), link.publish("t", b""), link.subscribe("t"))]
    await asyncio.sleep(0)
    await link.close()
    for wait in waits:
        with pytest.raises(LinkClosed, match="'c'"):
            await wait
