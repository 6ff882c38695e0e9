"""What one MQTT connection tells the link that owns it."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from shared.errors import LinkError

T = TypeVar("T", contravariant=True)

FATAL = frozenset({0x85, 0x86, 0x87, 0x8A, 0x8C})
"""CONNACK reasons that another attempt does not change: client id, credentials, authorization, ban, method."""
NO_ANSWER = 0
UNSUPPORTED_VERSION = 0x84
TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95


class Refused(Exception):
    """The broker does not want this connection. `code` is an MQTT 5 reason code; NO_ANSWER: it hung up or is mute."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Greeting:
    """CONNACK. `max_packet` is None where the broker states no limit."""

    session_present: bool
    max_packet: int | None
    receive_maximum: int


@dataclass(frozen=True)
class Ended:
    """Why a connection is over. `code`: the reason of the broker's DISCONNECT, where it sent one."""

    reason: str
    code: int = NO_ANSWER


class Owner(Protocol[T]):
    """What a connection reports to. Called on the loop's thread; must not raise."""

    def on_greeting(self, connection: T, greeting: Greeting) -> None:
        """The broker took us. Comes before any message."""

    def on_message(self, connection: T, topic: str, payload: bytes, retained: bool, number: int) -> None:
        """Acknowledge with `connection.ack(number)`; number 0 wants no acknowledgement."""

    def on_acknowledged(self, number: int, error: LinkError | None) -> None: ...

    def on_answered(self, number: int, refused: list[str | None]) -> None:
        """SUBACK or UNSUBACK: for each filter the reason of its refusal, or None."""
