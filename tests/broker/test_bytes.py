"""What devices and coordinator count is what a real broker counts."""

import asyncio
import os
from pathlib import Path

from brokers import PATIENCE_S, event
from parties import TOPICS, collect, distribute, fetch, offer

from edge_agent.metered import Metered
from shared.chunks import describe
from shared.link import Link, Received
from shared.transfer import chunk_size, published_size

SIZE = 2_000_003
COUNTERS = ("$SYS/broker/bytes/received", "$SYS/broker/bytes/sent")


async def counted_by_the_broker(observer: Link) -> tuple[int, int]:
    """Bytes that the broker has received and sent, as of an interval that began after this call."""
    seen: dict[str, list[int]] = {topic: [] for topic in COUNTERS}
    while not all(len(values) >= 2 for values in seen.values()):
        received = await event(observer, Received)
        if not received.retained:
            seen[received.topic].append(int(received.payload))
    return seen[COUNTERS[0]][-1], seen[COUNTERS[1]][-1]


async def test_a_transfer_in_both_directions(mosquitto, link, tmp_path: Path) -> None:
    broker = mosquitto("sys_interval 1")
    source = tmp_path / "payload"
    source.write_bytes(os.urandom(SIZE))
    blob = describe(source, chunk_size(8192))
    coordinator, device = Metered(await link(broker.url, "coordinator")), Metered(await link(broker.url, "device"))
    observer = await link(broker.url, "observer")
    distributing = asyncio.create_task(distribute(coordinator, source, blob))
    async with asyncio.timeout(PATIENCE_S):
        await fetch(device, blob, tmp_path / "got")
        distributing.cancel()
        await asyncio.gather(distributing, return_exceptions=True)
        assert device.down == coordinator.up == published_size(TOPICS, blob, range(blob.chunks))
        await asyncio.gather(offer(device, source), collect(coordinator, tmp_path / "back"))
        await observer.subscribe(*COUNTERS)
        received, sent = await counted_by_the_broker(observer)
    ours = {"received": device.up + coordinator.up, "sent": device.down + coordinator.down}
    assert min(ours.values()) > 2 * SIZE
    assert received / 1.03 < ours["received"] <= received
    assert sent / 1.03 < ours["sent"] <= sent
