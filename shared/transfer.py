"""Payloads of any size over a Link, in chunks that fit the broker's packets.

Down: the coordinator publishes each chunk once, retained; a device subscribes to one page of chunks after the other,
so its own subscription is the credit and the broker serves late and sleeping devices alone. Up: the coordinator grants
ranges of chunks and the device sends exactly those. Both resume from the chunks that the file at the receiver lacks.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Coroutine, Iterable, Iterator
from pathlib import Path

from shared.chunks import Assembly, chunk_length, read_chunk
from shared.codec import encode_message
from shared.errors import PacketTooLarge
from shared.link import PACKET_OVERHEAD, Link, packet_size
from shared.messages import PAGE, Blob, Chunk, Ranges, Want
from shared.topics import Topics

PIPELINE = 20
"""Chunks in memory on their way out: what a link keeps in flight."""
PAGES_OPEN = 2
"""Pages that a download is subscribed to at once: one arrives while the next is asked for."""
MAX_RANGES = 64
"""Ranges in one Grant or Want."""
SMALLEST_CHUNK = 512


def chunk_size(max_packet: int) -> int:
    """Bytes of a chunk whose packet fits `max_packet`; PacketTooLarge if no chunk would."""
    size = max_packet - PACKET_OVERHEAD
    if size < SMALLEST_CHUNK:
        raise PacketTooLarge(
            f"packets of {max_packet} bytes are too small to carry payloads: the broker must take at least "
            f"{SMALLEST_CHUNK + PACKET_OVERHEAD} bytes (Mosquitto: max_packet_size)"
        )
    return size


def published_size(topics: Topics, blob: Blob, chosen: Iterable[int]) -> int:
    """Bytes of the packets in which the broker gives one device these chunks of a published blob."""
    return sum(packet_size(topics.chunk(blob.digest, i // PAGE, i), chunk_length(blob, i)) for i in chosen)


def indices(ranges: Ranges, chunks: int) -> list[int]:
    """The chunks of these ranges, each once, in order; whatever is not below `chunks` is left out."""
    return sorted({index for first, last in ranges for index in range(first, min(last, chunks))})


def ranges_of(chosen: Iterable[int]) -> Ranges:
    """The first MAX_RANGES ranges that ascending indices make up."""
    ranges: list[tuple[int, int]] = []
    for index in chosen:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = ranges[-1][0], index + 1
        elif len(ranges) < MAX_RANGES:
            ranges.append((index, index + 1))
        else:
            break
    return tuple(ranges)


def grant(missing: Ranges, outstanding: Collection[int], room: int) -> Ranges:
    """The next chunks to ask a sender for: the first `room` that are missing and not asked for already."""

    def due() -> Iterator[int]:
        left = room
        for first, last in missing:
            for index in range(first, last):
                if left == 0:
                    return
                if index not in outstanding:
                    left -= 1
                    yield index

    return ranges_of(due())


async def publish_blob(link: Link, topics: Topics, path: Path, blob: Blob) -> None:
    """Leave every chunk of the file with the broker, retained. Returns when it has them all."""
    await _pipelined(
        link.publish(topics.chunk(blob.digest, index // PAGE, index), read_chunk(path, blob, index), retain=True)
        for index in range(blob.chunks)
    )


async def clear_blob(link: Link, topics: Topics, blob: Blob) -> None:
    """Make the broker forget a published blob."""
    await _pipelined(
        link.publish(topics.chunk(blob.digest, index // PAGE, index), b"", retain=True) for index in range(blob.chunks)
    )


async def send_chunks(link: Link, topic: str, path: Path, blob: Blob, ranges: Ranges) -> None:
    """Send the chunks of these ranges as Chunk messages, in order: the answer to a Grant or a Want."""
    await _pipelined(
        link.publish(
            topic,
            encode_message(Chunk(digest=blob.digest, index=index, data=read_chunk(path, blob, index))),
        )
        for index in indices(ranges, blob.chunks)
    )


async def _pipelined(jobs: Iterator[Coroutine[None, None, None]]) -> None:
    """Run the jobs, PIPELINE at once, each made only when there is room for it; the first error ends them all."""
    running: deque[asyncio.Task[None]] = deque()
    try:
        for job in jobs:
            running.append(asyncio.create_task(job))
            if len(running) == PIPELINE:
                await running.popleft()
        while running:
            await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Download:
    """One blob on its way to a file. The owner of the link feeds it with the chunks that arrive.

    `start`, then `on_chunk` for each chunk of `blob.digest` (from the blob's topics and from Chunk messages) until it
    returns True, then `finish`. `on_stall` when nothing has arrived for a while; `close` to give up or when done.
    What has arrived stays on the disk: a new Download of the same blob and path goes on from there.
    """

    def __init__(self, link: Link, topics: Topics, device: str, run: str, blob: Blob, path: Path) -> None:
        self.blob = blob
        self._link = link
        self._topics = topics
        self._up = topics.up(device)
        self._run = run
        self._assembly = Assembly(path, blob)
        self._pages: dict[int, set[int]] = {}
        for index in indices(self._assembly.missing(limit=blob.chunks), blob.chunks):
            self._pages.setdefault(index // PAGE, set()).add(index)
        self._open: list[int] = []
        self._stalls = 0
        self._direct = False
        """Whether chunks are asked of the coordinator itself, because the broker does not give them."""

    @property
    def complete(self) -> bool:
        return not self._pages

    async def start(self) -> None:
        await self._turn_pages()

    async def on_chunk(self, index: int, data: bytes) -> bool:
        """Take a chunk, wanted or not; True when the blob is complete. MalformedPayload if it has the wrong size.

        No data means that the chunk is no longer published.
        """
        page = self._pages.get(index // PAGE)
        if data and page is not None and index in page:
            self._assembly.add(index, data)
            self._stalls = 0
            page.remove(index)
            if not page:
                del self._pages[index // PAGE]
                await self._turn_pages()
        return self.complete

    async def on_stall(self) -> None:
        """Ask again: first the broker, whose retained chunks come with a new subscription, then the coordinator."""
        self._stalls += 1
        self._direct = self._stalls % 2 == 0
        if not self._direct:
            await self._link.unsubscribe(*map(self._filter, self._open))
        await self._ask(self._open)

    async def close(self) -> None:
        """Ask for nothing more; what is there is kept."""
        self._assembly.save()
        if self._open:
            await self._link.unsubscribe(*map(self._filter, self._open))
            self._open.clear()

    def finish(self) -> Path:
        """The file, whole and verified, though a power failure may still take it away; DigestMismatch if its bytes are
        not what the digest says. Then a new Download has everything to fetch again."""
        return self._assembly.finish(durable=False)

    def _filter(self, page: int) -> str:
        return self._topics.page(self.blob.digest, page)

    async def _turn_pages(self) -> None:
        """Leave the pages that are complete, open the next ones."""
        done = [page for page in self._open if page not in self._pages]
        wanted = list(self._pages)[:PAGES_OPEN]
        new = [page for page in wanted if page not in self._open]
        self._open = wanted
        requests = [self._ask(new)] if new else []
        if done:
            requests.append(self._link.unsubscribe(*map(self._filter, done)))
        await asyncio.gather(*requests)

    async def _ask(self, pages: list[int]) -> None:
        if self._direct:
            ranges = ranges_of(index for page in pages for index in sorted(self._pages[page]))
            await self._link.publish(
                self._up, encode_message(Want(run=self._run, digest=self.blob.digest, ranges=ranges))
            )
        else:
            await self._link.subscribe(*map(self._filter, pages))
