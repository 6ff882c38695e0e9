"""Sends the chunks of the pending update that were granted, in the background."""

import asyncio
import logging
import time

from edge_agent.store import Store
from shared.errors import LinkClosed, PacketTooLarge, StateError
from shared.link import Link
from shared.messages import Blob, Ranges
from shared.transfer import indices, ranges_of, send_chunks

log = logging.getLogger(__name__)


class Upload:
    """What is granted while something is being sent waits its turn; granted twice, it is sent once.

    How long an update was on its way, from the first grant to its receipt, is kept for the rounds to come, if all of it
    went in one go.
    """

    def __init__(self, link: Link, topic: str, store: Store) -> None:
        self._link, self._topic, self._store = link, topic, store
        self._granted: set[int] = set()
        self._sending: asyncio.Task[None] | None = None
        self._began: float | None = None
        self._left: set[int] = set()

    def send(self, blob: Blob, ranges: Ranges) -> None:
        if self._began is None:
            self._began, self._left = time.monotonic(), set(range(blob.chunks))
        chosen = indices(ranges, blob.chunks)
        self._left.difference_update(chosen)
        self._granted.update(chosen)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(blob))

    def stop(self, *, taken: str | None = None) -> None:
        """Send nothing more of it. taken: the run that it was accepted for."""
        if taken is not None and self._began is not None and not self._left:
            self._store.took(taken, time.monotonic() - self._began)
        self._began = None
        self._granted.clear()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    async def _send(self, blob: Blob) -> None:
        try:
            while self._granted:
                ranges = ranges_of(sorted(self._granted))
                self._granted.difference_update(indices(ranges, blob.chunks))
                await send_chunks(self._link, self._topic, self._store.update, blob, ranges)
        except (PacketTooLarge, StateError, OSError) as error:
            log.error("the update cannot be sent: %s", error)
        except LinkClosed:
            self._began = None
