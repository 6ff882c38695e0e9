"""A coordinator and a device, reduced to their transfers: what must survive every accident between them.

Like the real ones they pass over messages on topics that they did not subscribe to: amqtt delivers those as well.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from shared.chunks import Assembly, describe
from shared.codec import decode_downlink, decode_uplink, encode_message
from shared.link import Connected, Link, Received
from shared.messages import Blob, Chunk, Grant, Offer, Receipt, Want
from shared.topics import Topics
from shared.transfer import Download, chunk_size, grant, indices, publish_blob, send_chunks

TOPICS = Topics("fleet")
DEVICE = "device"
RUN = "run"
WINDOW = 8
STALL_S = 0.5


async def distribute(link: Link, path: Path, blob: Blob) -> None:
    """Publish a blob, again whenever the broker forgot it, and answer Wants; for ever."""
    await link.subscribe(TOPICS.all_up)
    async with asyncio.TaskGroup() as tasks:
        while True:
            match await link.receive():
                case Connected(session_present=False):
                    tasks.create_task(publish_blob(link, TOPICS, path, blob))
                case Received(topic, payload) if topic == TOPICS.up(DEVICE):
                    want = decode_uplink(payload)
                    assert isinstance(want, Want)
                    tasks.create_task(send_chunks(link, TOPICS.down(DEVICE), path, blob, want.ranges))


async def fetch(link: Link, blob: Blob, path: Path, progress: Callable[[int], None] = lambda _: None) -> bytes:
    """Download the blob as an agent does; its bytes. `progress` hears the number of chunks so far."""
    await link.subscribe(TOPICS.down(DEVICE))
    download = Download(link, TOPICS, DEVICE, RUN, blob, path)
    await download.start()
    chunks = 0
    while not download.complete:
        try:
            async with asyncio.timeout(STALL_S):
                event = await link.receive()
        except TimeoutError:
            await download.on_stall()
            continue
        if not isinstance(event, Received):
            continue
        if event.topic == TOPICS.down(DEVICE):
            message = decode_downlink(event.payload)
            assert isinstance(message, Chunk)
            await download.on_chunk(message.index, message.data)
        else:
            await download.on_chunk(TOPICS.chunk_index(event.topic)[1], event.payload)
        chunks += 1
        progress(chunks)
    await download.close()
    return download.finish().read_bytes()


async def collect(link: Link, path: Path, progress: Callable[[int], None] = lambda _: None) -> bytes:
    """Receive one offered update by grants; its bytes."""
    await link.subscribe(TOPICS.all_up)
    down = TOPICS.down(DEVICE)
    assembly: Assembly | None = None
    outstanding: set[int] = set()
    chunks = 0
    while assembly is None or not assembly.complete:
        try:
            async with asyncio.timeout(STALL_S):
                event = await link.receive()
        except TimeoutError:
            outstanding.clear()
        else:
            if not isinstance(event, Received) or event.topic != TOPICS.up(DEVICE):
                continue
            message = decode_uplink(event.payload)
            if isinstance(message, Offer) and assembly is None:
                assembly = Assembly(path, message.blob)
            elif isinstance(message, Chunk) and assembly is not None:
                assembly.add(message.index, message.data)
                outstanding.discard(message.index)
                chunks += 1
                progress(chunks)
        if assembly is not None and len(outstanding) <= WINDOW // 2:
            ranges = grant(assembly.missing(), outstanding, WINDOW - len(outstanding))
            outstanding.update(indices(ranges, assembly.blob.chunks))
            if ranges:
                await link.publish(down, encode_message(Grant(run=RUN, digest=assembly.blob.digest, ranges=ranges)))
    await link.publish(down, encode_message(Receipt(run=RUN, round=0, answers="offer", accepted=True)))
    return assembly.finish().read_bytes()


async def offer(link: Link, path: Path) -> None:
    """Offer the file, again after every stall, and send what is granted until there is a receipt."""
    await link.subscribe(TOPICS.down(DEVICE))
    blob = describe(path, chunk_size(link.max_packet))
    up = TOPICS.up(DEVICE)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.publish(up, encode_message(Offer(run=RUN, round=0, blob=blob))))
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    event = await link.receive()
            except TimeoutError:
                tasks.create_task(link.publish(up, encode_message(Offer(run=RUN, round=0, blob=blob))))
                continue
            if isinstance(event, Received) and event.topic == TOPICS.down(DEVICE):
                message = decode_downlink(event.payload)
                if isinstance(message, Receipt):
                    return
                assert isinstance(message, Grant)
                tasks.create_task(send_chunks(link, up, path, blob, message.ranges))
