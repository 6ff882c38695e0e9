"""The proxy between two real clients and a real broker: each weather does what it says, and nothing is lost by it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from brokers import PATIENCE_S, Mosquitto, event, online

from lab.proxy import FAIR, Proxy, Weather
from shared.config_base import BrokerSettings
from shared.link import Disconnected, Received
from shared.mqtt import MqttLink

COUNT = 40


@pytest.fixture
async def proxy(broker: Mosquitto) -> AsyncIterator[Proxy]:
    async with Proxy(broker.port) as proxy, asyncio.timeout(PATIENCE_S):
        yield proxy


@pytest.fixture
async def behind(proxy: Proxy) -> AsyncIterator[MqttLink]:
    """A client behind the proxy, subscribed to t."""
    link = MqttLink(BrokerSettings(url=f"mqtt://127.0.0.1:{proxy.port}", keepalive_s=5), "behind")
    await link.open()
    await online(link)
    await link.subscribe("t")
    yield link
    await link.close()


@pytest.fixture
async def direct(broker: Mosquitto) -> AsyncIterator[MqttLink]:
    link = MqttLink(BrokerSettings(url=broker.url), "direct")
    await link.open()
    await online(link)
    yield link
    await link.close()


async def numbers(link: MqttLink, wanted: set[int]) -> list[int]:
    """What arrives, until all of these have."""
    found: list[int] = []
    while not wanted <= set(found):
        found.append(int((await event(link, Received)).payload))
    return found


async def send(link: MqttLink) -> None:
    await asyncio.gather(*(link.publish("t", str(number).encode()) for number in range(COUNT)))


async def test_in_fair_weather_everything_comes_once_in_order(direct: MqttLink, behind: MqttLink) -> None:
    await send(direct)
    assert await numbers(behind, set(range(COUNT))) == list(range(COUNT))


async def test_a_cut_connection_is_noticed_and_nothing_is_lost(
    proxy: Proxy, direct: MqttLink, behind: MqttLink
) -> None:
    assert proxy.cut() == 1
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
    await direct.publish("t", str(COUNT).encode())  # the broker still knows what it has delivered
    assert (await numbers(behind, {COUNT}))[-1] == COUNT


async def test_a_dead_link_passes_nothing_and_tells_nobody(proxy: Proxy, direct: MqttLink, behind: MqttLink) -> None:
    await proxy.set(Weather(dead=True))
    await send(direct)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await behind.receive()
    await proxy.set(FAIR)
    assert await numbers(behind, set(range(COUNT))) == list(range(COUNT))


async def test_a_link_that_stays_dead_is_given_up_after_the_keepalive(proxy: Proxy, behind: MqttLink) -> None:
    await proxy.set(Weather(dead=True))
    assert await event(behind, Disconnected)
    await proxy.set(FAIR)
    await online(behind)


async def test_without_acknowledgements_nothing_counts_as_sent(proxy: Proxy, behind: MqttLink) -> None:
    await proxy.set(Weather(deaf=True))
    sending = asyncio.create_task(behind.publish("t", b"7"))
    assert await numbers(behind, {7}) == [7], "the broker has it"
    done, _ = await asyncio.wait({sending}, timeout=0.3)
    assert not done
    proxy.cut()
    await proxy.set(FAIR)
    await sending


async def test_a_slow_link_is_as_slow_as_it_says(proxy: Proxy, direct: MqttLink, behind: MqttLink) -> None:
    loop = asyncio.get_running_loop()
    await proxy.set(Weather(rate=40_000, delay_s=0.1))
    began = loop.time()
    await direct.publish("t", b"1" * 20_000)
    await event(behind, Received)
    assert loop.time() - began >= 0.6
