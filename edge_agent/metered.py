"""A link that counts what it carries."""

from collections.abc import Callable

from edge_agent.store import Store
from shared.link import Link, LinkEvent, Received, packet_size


class Metered:
    """shared.link.Link around another one. up, down: bytes of the PUBLISH packets that went through, as the broker
    counts them (shared.link.packet_size); subscriptions, acknowledgements and pings are not in it.

    spend  hears of each packet's bytes
    """

    def __init__(self, link: Link, spend: Callable[[int], None] = lambda _: None) -> None:
        self._link = link
        self._spend = spend
        self.up = 0
        self.down = 0

    @property
    def max_packet(self) -> int:
        return self._link.max_packet

    async def open(self) -> None:
        await self._link.open()

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await self._link.publish(topic, payload, retain=retain)
        size = packet_size(topic, len(payload))
        self.up += size
        self._spend(size)

    async def subscribe(self, *filters: str) -> None:
        await self._link.subscribe(*filters)

    async def unsubscribe(self, *filters: str) -> None:
        await self._link.unsubscribe(*filters)

    async def receive(self) -> LinkEvent:
        event = await self._link.receive()
        if isinstance(event, Received):
            size = packet_size(event.topic, len(event.payload))
            self.down += size
            self._spend(size)
        return event

    async def close(self) -> None:
        await self._link.close()


class Traffic:
    """Bytes on the link during the current run, before earlier restarts as well."""

    def __init__(self, link: Metered, store: Store) -> None:
        self._link, self._store = link, store
        self._counted = (0, 0)
        self.run = store.done.run if store.done else ""

    def of_run(self) -> dict[str, float]:
        """The bytes so far, as metrics."""
        traffic = self._store.traffic(
            self.run, up=self._link.up - self._counted[0], down=self._link.down - self._counted[1]
        )
        return {"bytes_up": float(traffic.up), "bytes_down": float(traffic.down)}

    def settle(self, run: str) -> dict[str, float]:
        """The same, and written down as those of this run; another run begins with them."""
        self.run = run
        (up, down), self._counted = self._counted, (self._link.up, self._link.down)
        self._store.count(run, up=self._link.up - up, down=self._link.down - down)
        return self.of_run()
