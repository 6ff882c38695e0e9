"""A link that counts what it carries."""

from shared.link import Link, LinkEvent, Received


class Metered:
    """shared.link.Link around another one. up, down: payload bytes that went through, framing of messages included."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.up = 0
        self.down = 0

    @property
    def max_packet(self) -> int:
        return self._link.max_packet

    async def open(self) -> None:
        await self._link.open()

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await self._link.publish(topic, payload, retain=retain)
        self.up += len(payload)

    async def subscribe(self, *filters: str) -> None:
        await self._link.subscribe(*filters)

    async def unsubscribe(self, *filters: str) -> None:
        await self._link.unsubscribe(*filters)

    async def receive(self) -> LinkEvent:
        event = await self._link.receive()
        if isinstance(event, Received):
            self.down += len(event.payload)
        return event

    async def close(self) -> None:
        await self._link.close()
