"""What the generated configuration lets each certificate do, at a real Mosquitto. A granted subscription proves nothing
there, so what must not arrive is followed by something that must."""

import asyncio

import pytest
from brokers import message, online
from fortress import FLEET, TOPICS

from coordinator.acl import Role, acl
from shared.errors import LinkError
from shared.link import Received, Will

DIGEST = "ab" * 32


async def heard_up_to(link, last: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    """Everything that arrives before `last`, which must."""
    heard = []
    while (found := await message(link)) != last:
        heard.append(found)
    return heard


@pytest.mark.parametrize(
    "topic",
    [
        TOPICS.presence("kitchen"),
        TOPICS.vitals("kitchen"),
        TOPICS.up("kitchen"),
        TOPICS.inferred("kitchen"),
        TOPICS.coordinator,
        TOPICS.task("hall"),
        TOPICS.task("kitchen"),
        TOPICS.down("hall"),
        TOPICS.down("kitchen"),
        TOPICS.chunk(DIGEST, 0, 0),
        TOPICS.infer("kitchen"),
        "elsewhere",
        f"{FLEET}/presence/hall/more",
    ],
)
async def test_a_device_writes_only_where_it_is_the_sender(fortress, link, topic):
    fortress.enrol("eye", role=Role.OBSERVER)
    fortress.reload()
    eye = await link(fortress.settings("eye", "observer"))
    await eye.subscribe("#")
    hall = await link(fortress.settings("hall"))
    with pytest.raises(LinkError, match="Not authorized"):
        await hall.publish(topic, b"forged", retain=True)
    await hall.publish(TOPICS.presence("hall"), b"mine", retain=True)
    assert await heard_up_to(eye, (TOPICS.presence("hall"), b"mine")) == []


async def test_a_device_writes_its_own_and_the_coordinator_reads_it(fortress, link):
    boss = await link(fortress.settings("coordinator"))
    await boss.subscribe(TOPICS.all_presence, TOPICS.all_vitals, TOPICS.all_up)
    hall = await link(fortress.settings("hall"))
    for topic in (TOPICS.presence("hall"), TOPICS.vitals("hall"), TOPICS.up("hall")):
        await hall.publish(topic, b"mine")
        assert await message(boss) == (topic, b"mine")
    await hall.publish(TOPICS.inferred("hall"), b"allowed")


@pytest.mark.parametrize("filters", [("#",), (f"{FLEET}/#",), (TOPICS.task("+"), TOPICS.down("+")), None])
async def test_a_device_reads_only_what_is_meant_for_it(fortress, link, filters):
    boss = await link(fortress.settings("coordinator"))
    await boss.publish(TOPICS.task("kitchen"), b"before", retain=True)
    hall = await link(fortress.settings("hall"))
    await hall.subscribe(*(filters or (TOPICS.task("kitchen"), TOPICS.down("kitchen"))), TOPICS.task("hall"))
    kitchen = await link(fortress.settings("kitchen"))
    await kitchen.publish(TOPICS.up("kitchen"), b"private")
    await kitchen.publish(TOPICS.presence("kitchen"), b"private")
    for topic in (TOPICS.task("kitchen"), TOPICS.down("kitchen"), TOPICS.infer("kitchen")):
        with_leave = topic != TOPICS.infer("kitchen")
        if with_leave:
            await boss.publish(topic, b"for the kitchen")
    await boss.publish(TOPICS.task("hall"), b"for the hall")
    assert await heard_up_to(hall, (TOPICS.task("hall"), b"for the hall")) == []


async def test_every_device_reads_the_coordinators_state_and_payloads(fortress, link):
    boss = await link(fortress.settings("coordinator"))
    hall = await link(fortress.settings("hall"))
    await hall.subscribe(TOPICS.coordinator, TOPICS.page(DIGEST, 0), TOPICS.down("hall"), TOPICS.task("hall"))
    for topic in (TOPICS.coordinator, TOPICS.chunk(DIGEST, 0, 3), TOPICS.down("hall"), TOPICS.task("hall")):
        await boss.publish(topic, b"x")
        assert await message(hall) == (topic, b"x")


@pytest.mark.parametrize("versions", [(5,), (4,)])
async def test_who_claims_anothers_client_id_neither_throws_it_out_nor_speaks_for_it(fortress, link, versions):
    kitchen = await link(fortress.settings("kitchen"), "kitchen")
    await online(kitchen)
    await kitchen.subscribe(TOPICS.task("kitchen"))
    hall = await link(fortress.settings("hall", username="kitchen"), "kitchen", versions=versions)
    await online(hall)
    boss = await link(fortress.settings("coordinator"))
    await boss.subscribe(TOPICS.all_up)
    try:
        await hall.publish(TOPICS.up("kitchen"), b"forged")  # 3.1.1 cannot say no
    except LinkError as error:
        assert "Not authorized" in str(error)  # noqa: PT017
        assert versions == (5,)
    await kitchen.publish(TOPICS.up("kitchen"), b"genuine")
    assert await message(boss) == (TOPICS.up("kitchen"), b"genuine")
    await boss.publish(TOPICS.task("kitchen"), b"still there")
    async with asyncio.timeout(10):
        assert await kitchen.receive() == Received(TOPICS.task("kitchen"), b"still there"), "nothing before it"


async def test_a_last_will_on_anothers_topic_is_not_published(fortress, link):
    boss = await link(fortress.settings("coordinator"))
    await boss.subscribe(TOPICS.all_presence)
    hall = await link(fortress.settings("hall"), will=Will(TOPICS.presence("kitchen"), b"dead"))
    await online(hall)
    hall._online[0].abort("the test cuts it")
    await online(hall)  # again: the will of the first connection is due
    await hall.publish(TOPICS.presence("hall"), b"alive")
    assert await heard_up_to(boss, (TOPICS.presence("hall"), b"alive")) == []


async def test_the_coordinator_cannot_pose_as_a_device_nor_an_observer_write(fortress, link):
    fortress.enrol("eye", role=Role.OBSERVER)
    fortress.reload()
    boss = await link(fortress.settings("coordinator"))
    eye = await link(fortress.settings("eye", "observer"))
    await eye.subscribe("#")
    for topic in (TOPICS.presence("kitchen"), TOPICS.up("kitchen"), TOPICS.inferred("kitchen")):
        for forger in (boss, eye):
            with pytest.raises(LinkError, match="Not authorized"):
                await forger.publish(topic, b"forged")
    for topic in (TOPICS.coordinator, TOPICS.task("kitchen"), TOPICS.down("kitchen"), TOPICS.chunk(DIGEST, 0, 0)):
        with pytest.raises(LinkError, match="Not authorized"):
            await eye.publish(topic, b"forged")
        await boss.publish(topic, b"seen")
        assert await message(eye) == (topic, b"seen")


async def test_clients_ask_listeners_answer_and_nobody_else_hears_the_questions(fortress, link):
    fortress.enrol("alice", role=Role.CLIENT)
    fortress.enrol("kitchen", role=Role.LISTENER)
    fortress.reload()
    agent = await link(fortress.settings("kitchen"))  # keeps its place beside the listener of the same name
    await online(agent)
    listener = await link(fortress.settings("kitchen", "listener"))
    await listener.subscribe(TOPICS.infer("kitchen"))
    hall = await link(fortress.settings("hall"))
    await hall.subscribe(TOPICS.infer("kitchen"), TOPICS.inferred("kitchen"), TOPICS.task("hall"))
    alice = await link(fortress.settings("alice", "client"))
    await alice.subscribe(TOPICS.inferred("kitchen"))
    await alice.publish(TOPICS.infer("kitchen"), b"what is it?")
    assert await message(listener) == (TOPICS.infer("kitchen"), b"what is it?")
    await listener.publish(TOPICS.inferred("kitchen"), b"a cat")
    assert await message(alice) == (TOPICS.inferred("kitchen"), b"a cat")
    with pytest.raises(LinkError, match="Not authorized"):
        await listener.publish(TOPICS.up("kitchen"), b"not my business")
    with pytest.raises(LinkError, match="Not authorized"):
        await alice.publish(TOPICS.task("kitchen"), b"do as I say")
    boss = await link(fortress.settings("coordinator"))
    await boss.publish(TOPICS.task("hall"), b"work")
    assert await heard_up_to(hall, (TOPICS.task("hall"), b"work")) == []


async def test_a_new_device_needs_no_word_to_the_broker(fortress, link):
    fortress.enrol("cellar")
    cellar = await link(fortress.settings("cellar"))
    await cellar.publish(TOPICS.presence("cellar"), b"here")


def test_names_that_would_break_the_file_are_refused():
    from shared.errors import ConfigError

    for name in ("a/b", "+", "#", "a b", "a.client", "", "x" * 65, "%u"):
        with pytest.raises(ConfigError):
            Role.DEVICE.user(name)
    text = acl("plant", [(Role.CLIENT, "alice")], ["kitchen"])
    assert "%c" not in text
    assert "user kitchen\ntopic deny #" in text
