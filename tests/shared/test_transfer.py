"""Transfers over a broker in memory: pages, credit, resumption, stalls. With real brokers: tests/broker."""

import asyncio
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chunks import describe
from shared.codec import decode_downlink, decode_uplink
from shared.errors import DigestMismatch, LinkError, MalformedPayload, PacketTooLarge
from shared.link import DEFAULT_MAX_PACKET, PACKET_OVERHEAD, Received
from shared.memory_link import MemoryBroker, MemoryLink
from shared.messages import PAGE, Blob, Chunk, Want
from shared.topics import Topics
from shared.transfer import (
    MAX_RANGES,
    Download,
    chunk_size,
    clear_blob,
    grant,
    indices,
    publish_blob,
    ranges_of,
    send_chunks,
)

TOPICS = Topics("fleet")
CHUNK = 1000
CHUNKS = 5 * PAGE + 3
SETS = st.sets(st.integers(0, 300)).map(sorted)


class Spy(MemoryLink):
    """A link that notes what is asked of it, and how many publishes run at once."""

    def __init__(self, broker: MemoryBroker, client_id: str) -> None:
        super().__init__(broker, client_id, None)
        self.subscribed: set[str] = set()
        self.most_subscribed = 0
        self.published: list[tuple[str, bytes]] = []
        self.running = self.most_running = 0

    async def subscribe(self, *filters: str) -> None:
        self.subscribed |= set(filters)
        self.most_subscribed = max(self.most_subscribed, len(self.subscribed))
        await super().subscribe(*filters)

    async def unsubscribe(self, *filters: str) -> None:
        self.subscribed -= set(filters)
        await super().unsubscribe(*filters)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.published.append((topic, payload))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await super().publish(topic, payload, retain=retain)
        self.running -= 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(CHUNK * CHUNKS - 1))
    return path


@pytest.fixture
def blob(source: Path) -> Blob:
    return describe(source, CHUNK)


async def spy(broker: MemoryBroker, client_id: str) -> Spy:
    link = Spy(broker, client_id)
    await link.open()
    await link.receive()
    return link


async def feed(download: Download, link: Spy, stop_after: int = CHUNKS) -> None:
    """What an agent does with its link until the download is complete."""
    async with asyncio.timeout(10):
        while stop_after and not download.complete:
            event = await link.receive()
            assert isinstance(event, Received)
            digest, index = TOPICS.chunk_index(event.topic)
            assert digest == download.blob.digest
            await download.on_chunk(index, event.payload)
            stop_after -= 1


# --- arithmetic -----------------------------------------------------------------------------------------------------


@given(SETS)
def test_ranges_are_the_indices_in_short(chosen):
    ranges = ranges_of(chosen)
    covered = indices(ranges, 1000)
    assert covered == chosen[: len(covered)]
    assert len(covered) == len(chosen) or len(ranges) == MAX_RANGES
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def test_hostile_ranges_cost_no_more_than_the_blob_has_chunks():
    assert indices(((0, 2**31 - 1),) * 64, 5) == [0, 1, 2, 3, 4]
    assert indices(((7, 9), (3, 1)), 5) == []


@given(SETS, SETS, st.integers(0, 50))
def test_a_grant_is_the_first_missing_chunks_that_are_not_under_way(missing, outstanding, room):
    granted = indices(grant(ranges_of(missing), set(outstanding), room), 1000)
    wanted = [index for index in indices(ranges_of(missing), 1000) if index not in outstanding][:room]
    assert granted == wanted[: len(granted)]
    assert granted or not wanted


def test_a_chunk_fills_the_packet():
    assert chunk_size(DEFAULT_MAX_PACKET) == DEFAULT_MAX_PACKET - PACKET_OVERHEAD
    with pytest.raises(PacketTooLarge, match="1024"):
        chunk_size(1000)


# --- down -----------------------------------------------------------------------------------------------------------


async def test_a_blob_arrives_through_two_open_pages_at_most(tmp_path, source, blob):
    broker = MemoryBroker()
    coordinator, device = await spy(broker, "coordinator"), await spy(broker, "device")
    await publish_blob(coordinator, TOPICS, source, blob)
    assert len(broker.retained) == CHUNKS
    assert 1 < coordinator.most_running <= 20
    download = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await download.start()
    await feed(download, device)
    assert download.finish().read_bytes() == source.read_bytes()
    assert device.most_subscribed <= 3  # two, and for a moment the one that is being left
    assert device.subscribed == set()
    await clear_blob(coordinator, TOPICS, blob)
    assert broker.retained == {}


async def test_a_device_may_be_there_before_the_blob(tmp_path, source, blob):
    broker = MemoryBroker()
    coordinator, device = await spy(broker, "coordinator"), await spy(broker, "device")
    download = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await download.start()
    await asyncio.gather(publish_blob(coordinator, TOPICS, source, blob), feed(download, device))
    assert download.finish().read_bytes() == source.read_bytes()


async def test_a_download_resumes_with_what_it_lacks(tmp_path, source, blob):
    broker = MemoryBroker()
    coordinator, device = await spy(broker, "coordinator"), await spy(broker, "device")
    await publish_blob(coordinator, TOPICS, source, blob)
    first = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await first.start()
    await feed(first, device, stop_after=2 * PAGE + 5)
    await first.close()
    again = await spy(broker, "device")
    second = Download(again, TOPICS, "device", "run", blob, tmp_path / "got")
    await second.start()
    assert again.subscribed == {TOPICS.page(blob.digest, 2), TOPICS.page(blob.digest, 3)}
    await feed(second, again, stop_after=1000)
    assert second.finish().read_bytes() == source.read_bytes()
    assert Download(again, TOPICS, "device", "run", blob, tmp_path / "got").complete


async def test_a_stalled_download_asks_the_broker_again_and_then_the_coordinator(tmp_path, source, blob):
    broker = MemoryBroker()
    coordinator, device = await spy(broker, "coordinator"), await spy(broker, "device")
    await publish_blob(coordinator, TOPICS, source, blob)
    for index in (3, 4, PAGE + 7):
        await coordinator.publish(TOPICS.chunk(blob.digest, index // PAGE, index), b"", retain=True)
    download = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await download.start()
    await feed(download, device, stop_after=2 * PAGE - 3)
    assert not download.complete
    await download.on_stall()
    await feed(download, device, stop_after=2 * PAGE - 3)  # retained chunks come again, and change nothing
    await download.on_stall()
    topic, payload = device.published[-1]
    assert topic == TOPICS.up("device")
    assert decode_uplink(payload) == Want(run="run", digest=blob.digest, ranges=((3, 5), (PAGE + 7, PAGE + 8)))
    await device.subscribe(TOPICS.down("device"))
    await send_chunks(coordinator, TOPICS.down("device"), source, blob, ((3, 5), (PAGE + 7, PAGE + 8)))
    for index in (3, 4, PAGE + 7):
        event = await device.receive()
        assert isinstance(event, Received)
        message = decode_downlink(event.payload)
        assert isinstance(message, Chunk)
        assert message.index == index
        await download.on_chunk(message.index, message.data)
    *_, (_, payload) = device.published  # what the broker does not keep is asked of the coordinator, page by page
    assert decode_uplink(payload) == Want(run="run", digest=blob.digest, ranges=((3 * PAGE, 4 * PAGE),))
    await download.on_stall()
    await feed(download, device, stop_after=1000)
    assert download.finish().read_bytes() == source.read_bytes()


async def test_a_cleared_or_unknown_chunk_does_no_harm_and_a_wrong_one_is_refused(tmp_path, source, blob):
    device = await spy(MemoryBroker(), "device")
    download = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await download.start()
    assert not await download.on_chunk(0, b"")
    assert not await download.on_chunk(10**6, b"x" * CHUNK)
    with pytest.raises(MalformedPayload):
        await download.on_chunk(0, b"x" * (CHUNK + 1))


async def test_bytes_that_are_not_the_digests_are_refused_and_fetched_anew(tmp_path, source, blob):
    broker = MemoryBroker()
    coordinator, device = await spy(broker, "coordinator"), await spy(broker, "device")
    await publish_blob(coordinator, TOPICS, source, blob)
    await coordinator.publish(TOPICS.chunk(blob.digest, 0, 3), bytes(CHUNK), retain=True)
    download = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await download.start()
    await feed(download, device)
    with pytest.raises(DigestMismatch):
        download.finish()
    await publish_blob(coordinator, TOPICS, source, blob)
    anew = Download(device, TOPICS, "device", "run", blob, tmp_path / "got")
    await anew.start()
    await feed(anew, device)
    assert anew.finish().read_bytes() == source.read_bytes()


# --- up -------------------------------------------------------------------------------------------------------------


async def test_exactly_the_granted_chunks_are_sent_in_order(source, blob):
    broker = MemoryBroker()
    device, coordinator = await spy(broker, "device"), await spy(broker, "coordinator")
    await coordinator.subscribe(TOPICS.all_up)
    await send_chunks(device, TOPICS.up("device"), source, blob, ((40, 80), (2, 4), (2**30, 2**31 - 1)))
    assert device.most_running <= 20
    expected = [2, 3, *range(40, 80)]
    for index in expected:
        event = await coordinator.receive()
        assert isinstance(event, Received)
        message = decode_uplink(event.payload)
        assert isinstance(message, Chunk)
        assert (message.digest, message.index) == (blob.digest, index)
        assert message.data == source.read_bytes()[index * CHUNK : (index + 1) * CHUNK]


async def test_a_chunk_message_of_full_size_fits_the_packet(tmp_path):
    broker = MemoryBroker(max_packet=5000)
    device = await spy(broker, "device")
    path = tmp_path / "update"
    path.write_bytes(os.urandom(20_000))
    blob = describe(path, chunk_size(broker.max_packet))
    await send_chunks(device, Topics("f" * 64).up("d" * 64), path, blob, ((0, blob.chunks),))
    await publish_blob(device, Topics("f" * 64), path, blob)


async def test_the_first_failure_ends_a_transfer(source, blob):
    broker = MemoryBroker(max_packet=900)
    device = await spy(broker, "device")
    with pytest.raises(LinkError):
        await publish_blob(device, TOPICS, source, blob)
    assert len(device.published) <= 20
