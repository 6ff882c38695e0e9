"""paho's client with a shorter way for PUBLISH and PUBACK, on which it spends half of the time of a transfer.

paho keeps the connection, the handshake, subscriptions and pings. QoS 1 is the outbox's: no message is stored here.
What is overridden are paho's own seams, not public ones; tests/broker holds them against real brokers.
"""

import contextlib
import ssl
import struct
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from shared.link import DEFAULT_MAX_PACKET

RECEIVE_WINDOW = 32
"""Packets that the broker may send before we acknowledge one: two pages of chunks. What bounds our memory."""
LARGEST_PACKET = 8 * DEFAULT_MAX_PACKET
"""Bytes of the largest packet that we take; an MQTT 5 broker keeps anything larger from us."""
SESSION_EXPIRY_S = 7 * 24 * 3600

Deliver = Callable[[bytes, bytes, bool, int], None]
"""(topic, payload, retained, packet number; 0 under QoS 0)."""
Acknowledge = Callable[[int, int], None]
"""(packet number, MQTT 5 reason code; 0 under 3.1.1)."""


def connect_properties(*, lasting: bool) -> Properties:
    """Of MQTT 5's CONNECT. lasting: whether the broker keeps our session while we are away."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_EXPIRY_S if lasting else 0
    properties.ReceiveMaximum = RECEIVE_WINDOW
    properties.MaximumPacketSize = LARGEST_PACKET
    return properties


class LeanClient(paho.Client):
    """`send` in place of publish, `deliver` and `acknowledge` in place of on_message and on_publish."""

    deliver: Deliver
    acknowledge: Acknowledge

    def send(self, topic: str, payload: bytes, retain: bool) -> int:
        """Queue a PUBLISH of QoS 1; its packet number."""
        name, number = topic.encode(), self._mid_generate()
        properties = b"\0" if self._protocol == paho.MQTTv5 else b""
        head = struct.pack(f"!H{len(name)}sH", len(name), name, number) + properties
        fixed = self._pack_remaining_length(bytearray([paho.PUBLISH | 2 | retain]), len(head) + len(payload))
        self._packet_queue(paho.PUBLISH, b"".join((fixed, head, payload)), number, 1)
        return number

    def _handle_publish(self) -> MQTTErrorCode:
        packet: bytearray = self._in_packet["packet"]
        flags: int = self._in_packet["command"]
        quality = flags >> 1 & 3
        if quality == 2:
            return paho.MQTT_ERR_PROTOCOL  # we never subscribe to it
        at: int = 2 + struct.unpack_from("!H", packet)[0]
        topic, number = bytes(packet[2:at]), 0
        if quality:
            number = struct.unpack_from("!H", packet, at)[0]
            at += 2
        if self._protocol == paho.MQTTv5:
            at += _properties(packet, at)
        if at > len(packet):
            return paho.MQTT_ERR_PROTOCOL
        with memoryview(packet) as view:
            payload = bytes(view[at:])
        self.deliver(topic, payload, bool(flags & 1), number)
        return paho.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: str) -> MQTTErrorCode:
        packet: bytearray = self._in_packet["packet"]
        self.acknowledge(struct.unpack_from("!H", packet)[0], packet[2] if len(packet) > 2 else 0)
        return paho.MQTT_ERR_SUCCESS

    def _packet_queue(self, command: int, packet: Any, *rest: Any) -> MQTTErrorCode:
        """paho copies what the socket did not take, where a view is cut without copying, and sends each
        acknowledgement by itself, where those that wait can go together."""
        last: dict[str, Any] | None = self._out_packet[-1] if self._out_packet else None  # type: ignore[assignment]
        if last is not None and command == last["command"] == paho.PUBACK and last["pos"] == 0:
            last["packet"] = bytes(last["packet"]) + packet
            last["to_process"] += len(packet)
            return paho.MQTT_ERR_SUCCESS
        return super()._packet_queue(command, memoryview(packet), *rest)  # type: ignore[arg-type]

    def _sock_send(self, buf: Any) -> int:
        """A broker of TLS 1.3 that does not take our certificate hangs up while we still believe in the connection. If
        our first packet then comes too late, writing it only finds the end; what the broker said is still to be read.
        """
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError:
            if isinstance(self._sock, ssl.SSLSocket):
                with contextlib.suppress(BlockingIOError):
                    self._sock_recv(1)
            raise


def _properties(packet: bytearray, at: int) -> int:
    """Bytes of the properties that start there, their length included."""
    length = 0
    for position in range(4):
        byte = packet[at + position]
        length |= (byte & 0x7F) << 7 * position
        if not byte & 0x80:
            return length + position + 1
    raise ValueError("the length of properties has four bytes at most")
