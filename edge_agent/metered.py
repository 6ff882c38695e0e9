"""A link that counts what it carries."""

from shared.link import Link, LinkEvent, Received, packet_size


class Metered:
    """shared.link.Link around another one. up, down: bytes of the PUBLISH packets that went through, as the broker
    counts them (shared.link.packet_size); subscriptions, acknowledgements and pings are not in it."""

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
        self.up += packet_size(topic, len(payload))

    async def subscribe(self, *filters: str) -> None:
        await self._link.subscribe(*filters)

    async def unsubscribe(self, *filters: str) -> None:
        await self._link.unsubscribe(*filters)

    async def receive(self) -> LinkEvent:
        event = await self._link.receive()
        if isinstance(event, Received):
            self.down += packet_size(event.topic, len(event.payload))
        return event

    async def close(self) -> None:
        await self._link.close()
