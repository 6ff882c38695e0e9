"""What was published and the broker has not acknowledged: in order, bounded in flight, kept across connections."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from shared.errors import LinkError, PacketTooLarge
from shared.link import packet_size


@dataclass(eq=False, slots=True)
class Publication:
    """One publish and the future of its caller; `sent_at` is a time of the event loop."""

    topic: str
    payload: bytes
    retain: bool
    done: asyncio.Future[None]
    sent_at: float = 0.0

    @property
    def packet(self) -> int:
        """Upper bound of its bytes on the wire, under MQTT 5 and 3.1.1."""
        return packet_size(self.topic, len(self.payload))

    def fail(self, error: LinkError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Outbox:
    """Publications on their way. No socket and no clock: the link asks what is due and reports what happened.

    Poison guard: a broker without a stated limit answers an oversize packet by hanging up, for ever. The oldest
    publication of a connection that died is therefore sent alone the next time, and given up if that one dies too.
    """

    def __init__(self) -> None:
        self._waiting: deque[Publication] = deque()
        self._sent: dict[int, Publication] = {}
        self._suspect: Publication | None = None

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    @property
    def oldest(self) -> Publication | None:
        """What has waited longest for its acknowledgement."""
        return next(iter(self._sent.values()), None)

    def add(self, publication: Publication) -> None:
        self._waiting.append(publication)

    def due(self, window: int, max_packet: int) -> Iterator[Publication]:
        """Each publication to send now, `window` in flight at most; `sent` must follow before the next is taken."""
        while self._waiting and len(self._sent) < (window if self._suspect is None else 1):
            publication = self._waiting.popleft()
            if publication.done.done():  # its caller was cancelled
                if publication is self._suspect:
                    self._suspect = None
            elif publication.packet > max_packet:  # the limit shrank while it waited
                publication.fail(too_large(publication, max_packet))
            else:
                yield publication

    def sent(self, number: int, publication: Publication, now: float) -> None:
        publication.sent_at = now
        self._sent[number] = publication

    def acknowledged(self, number: int, error: LinkError | None) -> None:
        """The broker answered packet `number`: it has it, or it refuses it."""
        publication = self._sent.pop(number, None)
        if publication is None:
            return
        if publication is self._suspect:
            self._suspect = None
        if error is not None:
            publication.fail(error)
        elif not publication.done.done():
            publication.done.set_result(None)

    def lost(self, *, too_big: bool) -> Publication | None:
        """The connection died: what was in flight goes first next time. Returns the publication that killed it, to be
        failed by the caller: at once if the broker said that a packet was `too_big`, else the second time in a row."""
        oldest = self.oldest
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        if oldest is None or not (too_big or oldest is self._suspect):
            self._suspect = oldest
            return None
        self._suspect = None
        self._waiting.popleft()
        return oldest

    def fail_all(self, error: LinkError) -> None:
        for publication in (*self._sent.values(), *self._waiting):
            publication.fail(error)
        self._sent.clear()
        self._waiting.clear()


def too_large(publication: Publication, max_packet: int) -> PacketTooLarge:
    return PacketTooLarge(
        f"a packet of {publication.packet} bytes to {publication.topic!r} exceeds the {max_packet} bytes that "
        "the broker takes: send it in smaller chunks, or raise the broker's max_packet_size"
    )
