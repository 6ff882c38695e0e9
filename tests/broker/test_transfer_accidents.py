"""Payloads through a real broker that dies on the way: they arrive, whole, whatever the broker forgets."""

import asyncio
import os
from collections.abc import Callable

import pytest
from brokers import PATIENCE_S, Mosquitto
from parties import collect, distribute, fetch, offer

from coordinator.broker import EmbeddedBroker
from shared.chunks import describe
from shared.transfer import chunk_size

VERSIONS = pytest.mark.parametrize("versions", [(5,), (4,)], ids=["mqtt5", "mqtt3.1.1"])
FAST_SAVE = ("autosave_interval 1", "autosave_on_changes true")
MEMORIES = pytest.mark.parametrize(
    ("persistent", "lines"), [(False, ()), (True, FAST_SAVE)], ids=["forgets", "remembers"]
)
SIZE = 9_000_001


def kill_at(broker: Mosquitto, *moments: int) -> Callable[[int], None]:
    """Progress at which the broker is killed and started again."""

    def progress(chunks: int) -> None:
        if chunks in moments:
            broker.kill()
            broker.start()

    return progress


@VERSIONS
@MEMORIES
async def test_a_download_survives_the_broker(mosquitto, link, tmp_path, versions, persistent, lines):
    broker = mosquitto(*lines, persistent=persistent)
    source = tmp_path / "payload"
    source.write_bytes(os.urandom(SIZE))
    blob = describe(source, chunk_size(122_880))
    coordinator = await link(broker.url, "coordinator", versions=versions)
    device = await link(broker.url, "device", versions=versions)
    distributing = asyncio.create_task(distribute(coordinator, source, blob))
    async with asyncio.timeout(PATIENCE_S):
        assert await fetch(device, blob, tmp_path / "got", kill_at(broker, 5, 40)) == source.read_bytes()
    distributing.cancel()
    await asyncio.gather(distributing, return_exceptions=True)


@VERSIONS
@MEMORIES
async def test_an_upload_survives_the_broker(mosquitto, link, tmp_path, versions, persistent, lines):
    broker = mosquitto(*lines, persistent=persistent)
    source = tmp_path / "update"
    source.write_bytes(os.urandom(SIZE))
    coordinator = await link(broker.url, "coordinator", versions=versions)
    device = await link(broker.url, "device", versions=versions)
    offering = asyncio.create_task(offer(device, source))
    async with asyncio.timeout(PATIENCE_S):
        assert await collect(coordinator, tmp_path / "got", kill_at(broker, 3, 40)) == source.read_bytes()
    offering.cancel()
    await asyncio.gather(offering, return_exceptions=True)


async def test_transfers_survive_amqtt(link, tmp_path, monkeypatch):
    """The stand-in broker speaks 3.1.1 only, forgets sessions and what was in flight: repetition makes up for it."""
    monkeypatch.setenv("TALARIA_MOSQUITTO", "/nowhere/mosquitto")
    source = tmp_path / "payload"
    source.write_bytes(os.urandom(3_000_000))
    blob = describe(source, chunk_size(122_880))
    async with EmbeddedBroker(tmp_path / "broker") as broker, asyncio.timeout(PATIENCE_S):
        coordinator, device = await link(broker.url, "coordinator"), await link(broker.url, "device")

        def disconnect(chunks: int) -> None:
            """Chunks that came before the first disconnection are still counted while the link is down."""
            if chunks in (4, 9):
                for online in (coordinator._online, device._online):
                    if online is not None:
                        online[0].abort("pulled out")

        distributing = asyncio.create_task(distribute(coordinator, source, blob))
        assert await fetch(device, blob, tmp_path / "down", disconnect) == source.read_bytes()
        distributing.cancel()
        await asyncio.gather(distributing, return_exceptions=True)
        offering = asyncio.create_task(offer(device, source))
        assert await collect(coordinator, tmp_path / "up", disconnect) == source.read_bytes()
        offering.cancel()
        await asyncio.gather(offering, return_exceptions=True)
        await coordinator.close()
        await device.close()
