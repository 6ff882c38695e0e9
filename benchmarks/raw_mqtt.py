"""The measuring stick: MQTT 3.1.1 with QoS 1 on bare blocking sockets, nothing decoded, nothing kept, nothing checked.

What a broker and two Python processes can move at best; whoever does more than count bytes is slower.
"""

import socket
import struct
from collections.abc import Callable

WINDOW = 16
CONNECT, PUBLISH, SUBSCRIBE, DISCONNECT = 0x10, 0x32, 0x82, 0xE0


def connect(port: int, client_id: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name = client_id.encode()
    sock.sendall(_packet(CONNECT, b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(name)) + name))
    assert _exactly(sock, 4) == b"\x20\x02\x00\x00"
    return sock


def subscribe(sock: socket.socket, topic: str) -> None:
    sock.sendall(_packet(SUBSCRIBE, struct.pack("!HH", 1, len(topic)) + topic.encode() + b"\x01"))
    assert _exactly(sock, 5) == b"\x90\x03\x00\x01\x01"


def publish(sock: socket.socket, topic: str, data: memoryview, chunk: int) -> None:
    """All of `data`, WINDOW chunks in flight. Returns with the last acknowledgement."""
    unacknowledged = 0
    for number, start in enumerate(range(0, len(data), chunk), 1):
        part = data[start : start + chunk]
        head = struct.pack("!H", len(topic)) + topic.encode() + struct.pack("!H", number)
        fixed = bytes([PUBLISH]) + _length(len(head) + len(part)) + head
        sent = sock.sendmsg([fixed, part])
        if sent < len(fixed) + len(part):
            sock.sendall(part[sent - len(fixed) :])
        unacknowledged += 1
        while unacknowledged == WINDOW:
            unacknowledged -= len(sock.recv(4 * WINDOW)) // 4
    while unacknowledged:
        unacknowledged -= len(sock.recv(4 * WINDOW)) // 4


def receive(sock: socket.socket, size: int, keep: Callable[[memoryview], object] | None = None) -> None:
    """Acknowledge publishes until `size` bytes of payload have come, and hand each payload to `keep`."""
    buffer = memoryview(bytearray(1 << 20))
    filled = 0
    while size > 0:
        filled += sock.recv_into(buffer[filled:])
        at = 0
        acknowledgements = b""
        while (packet := _complete_publish(buffer[at:filled])) is not None:
            length, payload, number = packet
            if keep is not None:
                keep(buffer[at + length - payload : at + length])
            acknowledgements += struct.pack("!BBH", 0x40, 2, number)
            size -= payload
            at += length
        if acknowledgements:
            sock.sendall(acknowledgements)
        buffer[: filled - at] = bytes(buffer[at:filled])
        filled -= at


def close(sock: socket.socket) -> None:
    sock.sendall(_packet(DISCONNECT, b""))
    sock.close()


def _complete_publish(view: memoryview) -> tuple[int, int, int] | None:
    """(bytes of the packet, bytes of its payload, packet number), or None if it is not whole."""
    length, shift, at = 0, 0, 1
    while True:
        if at >= len(view):
            return None
        length |= (view[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not view[at - 1] & 0x80:
            break
    if at + length > len(view):
        return None
    topic = struct.unpack_from("!H", view, at)[0]
    number = struct.unpack_from("!H", view, at + 2 + topic)[0]
    return at + length, length - 4 - topic, number


def _packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _length(len(body)) + body


def _length(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, byte = divmod(value, 128)
        encoded.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data))
    return data
