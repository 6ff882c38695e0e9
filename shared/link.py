"""One client's connection to a broker, whatever carries it: MQTT (shared.mqtt) or memory (shared.memory_link)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

DEFAULT_MAX_PACKET = 122_880
"""Bytes of one packet unless the broker says less: 120 KiB, which AWS IoT Core takes."""
PACKET_OVERHEAD = 512
"""Upper bound of what topic, properties and message framing add to a chunk's bytes."""


def packet_size(topic: str, payload: int, qos: int = 1) -> int:
    """Bytes of the MQTT 5 PUBLISH packet without properties that carries `payload` bytes, as the broker counts them:
    the fixed header, topic, packet number (not under QoS 0), length of the properties, payload. 3.1.1: one less."""
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + 1 + payload
    return 1 + -(-remaining.bit_length() // 7) + remaining


@dataclass(frozen=True)
class Connected:
    """session_present: the broker kept our session; if not, subscriptions were made anew, and what others retained
    or we published may be gone. max_packet: bytes of the largest packet that may be published."""

    session_present: bool
    max_packet: int


@dataclass(frozen=True)
class Disconnected:
    reason: str


@dataclass(frozen=True)
class Received:
    topic: str
    payload: bytes = field(repr=False)
    retained: bool = False


LinkEvent: TypeAlias = Connected | Disconnected | Received


@dataclass(frozen=True)
class Will:
    """Published by the broker, retained, when the connection dies without a goodbye."""

    topic: str
    payload: bytes


class Link(Protocol):
    """A connection that keeps itself alive: it reconnects with jitter and restores its subscriptions.

    Delivery is at least once in both directions: handlers must be idempotent. An acknowledged publish is with the
    broker, which is no proof that anybody receives it.
    """

    @property
    def max_packet(self) -> int: ...

    async def open(self) -> None:
        """Start connecting. Returns at once; `receive` tells of Connected. LinkError when retrying is pointless
        (credentials refused, bad certificate): then `receive` raises it."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1 and return when the broker has it; waits for a free in-flight slot, and across a lost
        connection. LinkClosed if the link is closed meanwhile, PacketTooLarge at once if it cannot fit."""

    async def subscribe(self, *filters: str) -> None:
        """Subscribe with QoS 1; retained messages of a new subscription follow as Received(retained=True)."""

    async def unsubscribe(self, *filters: str) -> None: ...

    async def receive(self) -> LinkEvent:
        """The next event, in order. LinkClosed after close."""

    async def close(self) -> None:
        """Say goodbye (the will is not published), within a bounded time."""


OpenLink: TypeAlias = Callable[[str, Will | None], Link]
"""(client id, last will) -> a link that is not open yet. How programs are given their way to the broker."""
