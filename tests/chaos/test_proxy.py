"""The proxy between two real clients and a real broker: each weather does what it says, and nothing is lost by it."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from brokers import PATIENCE_S, event, online

from lab.chaos_fleet import Broker
from lab.chaos_keys import Keys
from lab.chaos_plan import COORDINATOR
from lab.proxy import FAIR, HOST, Proxy, Streams, Weather, server_context
from shared.credentials import tls_context
from shared.link import Disconnected, Received
from shared.mqtt import MqttLink
from shared.topics import Topics

COUNT = 40
DEVICE = "behind"
TOPICS = Topics("plant")
TOPIC = TOPICS.down(DEVICE)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys", "plant", [DEVICE], keepalive_s=5)


@pytest.fixture
async def broker(keys: Keys) -> AsyncIterator[Broker]:
    broker = Broker(keys.broker, keys.port)
    await broker.start()
    yield broker
    await broker.kill()


@pytest.fixture
async def proxy(keys: Keys, broker: Broker) -> AsyncIterator[Proxy]:
    async with keys.proxy(DEVICE) as proxy, asyncio.timeout(PATIENCE_S):
        yield proxy


@pytest.fixture
async def behind(proxy: Proxy) -> AsyncIterator[MqttLink]:
    """A device behind the proxy, which listens to the coordinator."""
    link = MqttLink(proxy.way, DEVICE)
    await link.open()
    await online(link)
    await link.subscribe(TOPIC)
    yield link
    await link.close()


@pytest.fixture
async def direct(keys: Keys, broker: Broker) -> AsyncIterator[MqttLink]:
    """The coordinator, which listens to devices."""
    link = MqttLink(keys.way(COORDINATOR), COORDINATOR)
    await link.open()
    await online(link)
    await link.subscribe(TOPICS.all_up)
    yield link
    await link.close()


async def numbers(link: MqttLink, wanted: set[int]) -> list[int]:
    """What arrives, until all of these have."""
    found: list[int] = []
    while not wanted <= set(found):
        found.append(int((await event(link, Received)).payload))
    return found


async def send(link: MqttLink) -> None:
    await asyncio.gather(*(link.publish(TOPIC, str(number).encode()) for number in range(COUNT)))


async def hears_nothing(link: MqttLink) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await link.receive()


async def test_in_fair_weather_everything_comes_once_in_order(direct: MqttLink, behind: MqttLink) -> None:
    await send(direct)
    assert await numbers(behind, set(range(COUNT))) == list(range(COUNT))


async def test_a_cut_connection_is_noticed_and_nothing_is_lost(
    proxy: Proxy, direct: MqttLink, behind: MqttLink
) -> None:
    assert await proxy.cut() == 1
    await event(behind, Disconnected)
    await send(direct)
    assert set(await numbers(behind, set(range(COUNT)))) == set(range(COUNT))


async def test_deliveries_come_twice_and_out_of_order(proxy: Proxy, direct: MqttLink, behind: MqttLink) -> None:
    await proxy.set(Weather(repeats=3))
    await send(direct)
    found = await numbers(behind, set(range(COUNT)))
    counts = Counter(found)
    assert any(count == 2 for count in counts.values())
    first = list(dict.fromkeys(found))
    assert first != sorted(first), "nothing came out of order"
    await proxy.set(FAIR)
    await direct.publish(TOPIC, str(COUNT).encode())  # the broker still knows what it has delivered
    assert (await numbers(behind, {COUNT}))[-1] == COUNT


async def test_a_dead_link_passes_nothing_and_tells_nobody(proxy: Proxy, direct: MqttLink, behind: MqttLink) -> None:
    await proxy.set(Weather(dead=True))
    await send(direct)
    await hears_nothing(behind)
    await proxy.set(FAIR)
    assert await numbers(behind, set(range(COUNT))) == list(range(COUNT))


async def test_on_a_dead_link_not_even_the_end_of_the_broker_is_told(
    proxy: Proxy, broker: Broker, behind: MqttLink
) -> None:
    await proxy.set(Weather(dead=True))
    await broker.kill()
    await hears_nothing(behind)
    await proxy.set(FAIR)
    await event(behind, Disconnected)


async def test_a_link_that_stays_dead_is_given_up_after_the_keepalive(proxy: Proxy) -> None:
    link = MqttLink(proxy.way.model_copy(update={"keepalive_s": 1}), DEVICE)  # settings take no less than 5
    await link.open()
    await online(link)
    await proxy.set(Weather(dead=True))
    assert await event(link, Disconnected)
    await proxy.set(FAIR)
    await online(link)
    await link.close()


async def test_without_acknowledgements_nothing_counts_as_sent(
    proxy: Proxy, direct: MqttLink, behind: MqttLink
) -> None:
    await proxy.set(Weather(deaf=True))
    sending = asyncio.create_task(behind.publish(TOPICS.up(DEVICE), b"7"))
    assert await numbers(direct, {7}) == [7], "the broker has it"
    done, _ = await asyncio.wait({sending}, timeout=0.3)
    assert not done
    await proxy.cut()
    await proxy.set(FAIR)
    await sending


async def test_a_slow_link_is_as_slow_as_it_says(proxy: Proxy, direct: MqttLink, behind: MqttLink) -> None:
    loop = asyncio.get_running_loop()
    await proxy.set(Weather(rate=40_000, delay_s=0.1))
    began = loop.time()
    await direct.publish(TOPIC, b"1" * 20_000)
    await event(behind, Received)
    assert loop.time() - began >= 0.6


# --- without MQTT: what is seen at the sockets ------------------------------------------------------------------------


@pytest.fixture
async def arrived(keys: Keys) -> AsyncIterator[asyncio.Queue[Streams]]:
    """Connections that come to the broker's place, where we stand."""
    queue: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda *streams: queue.put_nowait(streams), HOST, keys.port, ssl=server_context(keys.broker)
    )
    yield queue
    server.close()


async def connect(proxy: Proxy, tls: ssl.SSLContext | None) -> Streams:
    host, _, port = proxy.way.url.removeprefix("mqtts://").partition(":")
    return await asyncio.open_connection(host, int(port), ssl=tls)


async def test_a_cut_is_a_reset_on_both_sides(keys: Keys, arrived: asyncio.Queue[Streams]) -> None:
    async with keys.proxy(DEVICE) as proxy, asyncio.timeout(PATIENCE_S):
        client, _ = await connect(proxy, tls_context(proxy.way))
        broker, at_broker = await arrived.get()
        assert dict(each[0] for each in at_broker.get_extra_info("peercert")["subject"])["commonName"] == DEVICE
        assert await proxy.cut() == 1
        for side in (client, broker):
            with pytest.raises(ConnectionResetError):
                await side.read(1)


async def test_who_connects_over_a_dead_link_is_not_answered(keys: Keys, arrived: asyncio.Queue[Streams]) -> None:
    async with keys.proxy(DEVICE) as proxy, asyncio.timeout(PATIENCE_S):
        await proxy.set(Weather(dead=True))
        connecting = asyncio.create_task(connect(proxy, tls_context(proxy.way)))
        done, _ = await asyncio.wait({connecting}, timeout=0.3)
        assert not done
        assert arrived.empty(), "the broker heard of it"
        await proxy.set(FAIR)
        await connecting


async def test_who_has_no_certificate_does_not_get_in(keys: Keys, arrived: asyncio.Queue[Streams]) -> None:
    bare = ssl.create_default_context(cafile=keys.broker / "ca.pem")
    async with keys.proxy(DEVICE) as proxy, asyncio.timeout(PATIENCE_S):
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await (await connect(proxy, bare))[0].readexactly(1)
