"""A broker inside one process: what MQTT promises, without a socket. For simulations and tests.

Everything happens in the order of the calls, so that a run repeats exactly.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from shared.errors import LinkClosed, PacketTooLarge
from shared.link import DEFAULT_MAX_PACKET, Connected, Disconnected, LinkEvent, Received, Will, packet_size

WILDCARDS = frozenset("+#")


def matches(pattern: list[str], topic: list[str]) -> bool:
    """Whether a topic filter takes a topic, both split into levels: `+` stands for one level, `#` for all the rest."""
    if topic[0].startswith("$") and pattern[0] in ("+", "#"):
        return False
    for index, level in enumerate(pattern):
        if level == "#":
            return True
        if index == len(topic) or level not in ("+", topic[index]):
            return False
    return len(pattern) == len(topic)


@dataclass
class _Session:
    """What the broker keeps of a client while it is away. Filters without a wildcard are topics."""

    topics: set[str] = field(default_factory=set)
    patterns: dict[str, list[str]] = field(default_factory=dict)
    queue: deque[Received] = field(default_factory=deque)
    link: "MemoryLink | None" = None


class MemoryBroker:
    """Links are made with `link`. `cut`, `restore` and `restart` are the accidents that tests and simulations cause."""

    def __init__(self, max_packet: int = DEFAULT_MAX_PACKET) -> None:
        self.max_packet = max_packet
        self.retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._links: dict[str, MemoryLink] = {}

    def link(self, client_id: str, will: Will | None = None) -> "MemoryLink":
        """A link that is not open yet; this method is an OpenLink."""
        return MemoryLink(self, client_id, will)

    def cut(self, client_id: str) -> None:
        """The connection of this client dies: its will is published, and the link waits for `restore`."""
        session = self._sessions[client_id]
        link, session.link = session.link, None
        if link is not None:
            link.lost("the connection was cut")
            if link.will is not None:
                self.publish(link.will.topic, link.will.payload, retain=True)

    def restore(self, client_id: str) -> None:
        """The link of a client that was cut connects again."""
        self.attach(self._links[client_id])

    def restart(self, *, persistent: bool) -> None:
        """The broker is killed and comes back: every link loses its connection, no will is published, and all that
        was connected connects again. Unless `persistent`, sessions and retained messages are gone."""
        links = [session.link for session in self._sessions.values() if session.link is not None]
        for link in links:
            link.lost("the broker is gone")
        for session in self._sessions.values():
            session.link = None
        if not persistent:
            self._sessions.clear()
            self.retained.clear()
        for link in links:
            self.attach(link)

    # --- for MemoryLink ----------------------------------------------------------------------------------------------

    def attach(self, link: "MemoryLink") -> None:
        """Connect a link, with the session of its client id; another link of that id loses its connection."""
        session_present = link.client_id in self._sessions
        if session_present and self._sessions[link.client_id].link is not None:
            self.cut(link.client_id)
        session = self._sessions.setdefault(link.client_id, _Session())
        session.link = self._links[link.client_id] = link
        link.greet(Connected(session_present, self.max_packet))
        for received in session.queue:
            link.tell(received)
        session.queue.clear()
        if not session_present:
            for each in link.filters:
                self.subscribe(link.client_id, each)

    def detach(self, link: "MemoryLink") -> None:
        """A goodbye: no will. The session stays."""
        session = self._sessions.get(link.client_id)
        if session is not None and session.link is link:
            session.link = None

    def subscribe(self, client_id: str, pattern: str) -> None:
        session, levels = self._sessions[client_id], pattern.split("/")
        if WILDCARDS.isdisjoint(levels):
            session.topics.add(pattern)
            found = [pattern] if pattern in self.retained else []
        else:
            session.patterns[pattern] = levels
            found = [topic for topic in self.retained if matches(levels, topic.split("/"))]
        for topic in found:
            self._deliver(session, Received(topic, self.retained[topic], retained=True))

    def unsubscribe(self, client_id: str, pattern: str) -> None:
        self._sessions[client_id].topics.discard(pattern)
        self._sessions[client_id].patterns.pop(pattern, None)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        levels = topic.split("/")
        for session in list(self._sessions.values()):
            if topic in session.topics or any(matches(pattern, levels) for pattern in session.patterns.values()):
                self._deliver(session, Received(topic, payload))

    def _deliver(self, session: _Session, received: Received) -> None:
        if session.link is not None:
            session.link.tell(received)
        else:
            session.queue.append(received)


class MemoryLink:
    """shared.link.Link by way of a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, client_id: str, will: Will | None) -> None:
        self.client_id = client_id
        self.will = will
        self.filters: dict[str, None] = {}
        self._broker = broker
        self._events: deque[LinkEvent] = deque()
        self._changed = asyncio.Event()
        self._online = False
        self._closed = False

    @property
    def max_packet(self) -> int:
        return self._broker.max_packet

    async def open(self) -> None:
        self._broker.attach(self)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._check_open()
        size = packet_size(topic, len(payload))
        if size > self._broker.max_packet:
            raise PacketTooLarge(
                f"a packet of {size} bytes to {topic!r} exceeds the {self._broker.max_packet} bytes that are taken"
            )
        await self._until_online()
        self._broker.publish(topic, payload, retain=retain)

    async def subscribe(self, *filters: str) -> None:
        for each in filters:
            self.filters[each] = None
        await self._until_online()
        for each in filters:
            self._broker.subscribe(self.client_id, each)

    async def unsubscribe(self, *filters: str) -> None:
        for each in filters:
            self.filters.pop(each, None)
        await self._until_online()
        for each in filters:
            self._broker.unsubscribe(self.client_id, each)

    async def receive(self) -> LinkEvent:
        while not self._events:
            await self._change()
        return self._events.popleft()

    async def close(self) -> None:
        self._broker.detach(self)
        self._closed = True
        self._online = False
        self._events.clear()
        self._changed.set()

    async def _until_online(self) -> None:
        await asyncio.sleep(0)  # the others' turn, as with a real broker
        while not self._online:
            await self._change()
        self._check_open()

    async def _change(self) -> None:
        self._check_open()
        self._changed.clear()
        await self._changed.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkClosed(f"the link of client {self.client_id!r} was closed")

    # --- for MemoryBroker --------------------------------------------------------------------------------------------

    def greet(self, event: Connected) -> None:
        self._online = True
        self.tell(event)

    def lost(self, reason: str) -> None:
        self._online = False
        self.tell(Disconnected(reason))

    def tell(self, event: LinkEvent) -> None:
        self._events.append(event)
        self._changed.set()
