"""What may happen to the connection between a client and its broker, on purpose: a proxy that knows MQTT packets.

It never changes what a packet says, and does nothing that TCP, a router or a broker may not do: bytes come late, slowly
or never, connections die, acknowledgements get lost on the way, and what the broker delivers comes twice (with DUP set,
as at-least-once delivery allows) or out of order. The client's answer to the second copy stays in here: the broker
knows of one delivery only.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

PUBLISH, PUBACK = 3, 4
DUP, QOS = 0x08, 0x06
CONNECT_S = 2.0
LARGEST = 2**28


@dataclass(frozen=True)
class Weather:
    """How the link is now.

    rate       bytes per second, each way; None: as fast as the machine
    delay_s    that every packet takes longer
    dead       half-open: nothing passes, and nobody is told
    deaf       acknowledgements of the broker do not arrive
    repeats    every so many-th delivery comes twice, or after the next one; 0: none does
    """

    rate: float | None = None
    delay_s: float = 0.0
    dead: bool = False
    deaf: bool = False
    repeats: int = 0


FAIR = Weather()


class Proxy:
    """`async with Proxy(port) as proxy:` takes connections on `proxy.port` and carries them to the broker's port."""

    def __init__(self, upstream: int) -> None:
        self.port = 0
        self.bytes = 0
        """Carried to the client."""
        self._upstream = upstream
        self._weather = FAIR
        self._changed = asyncio.Condition()
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.set(FAIR)  # whoever waits for better weather ends
        self.cut()
        await asyncio.sleep(0)

    async def set(self, weather: Weather) -> None:
        """The weather from now on, for connections that are there and for new ones."""
        async with self._changed:
            self._weather = weather
            self._changed.notify_all()

    def cut(self) -> int:
        """Reset every connection (RST, not FIN), both ends; how many there were."""
        count = len(self._connections) // 2
        for writer in list(self._connections):
            _reset(writer)
        return count

    # ----------------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except (OSError, TimeoutError):
            _reset(writer)
            return
        ours = {writer, up_writer}
        self._connections |= ours
        again: Counter[int] = Counter()
        ways = [
            asyncio.create_task(self._up(reader, up_writer, again)),
            asyncio.create_task(self._down(up_reader, writer, again)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._connections -= ours
            for each in ours:
                each.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, again: Counter[int]) -> None:
        async for packet in _packets(reader):
            if packet[0] >> 4 == PUBACK and again[number := _number_of_ack(packet)]:
                again[number] -= 1
                continue
            await self._carry(packet, writer)

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, again: Counter[int]) -> None:
        count, late = 0, b""
        async for packet in _packets(reader):
            kind, weather = packet[0] >> 4, self._weather
            if kind == PUBACK and weather.deaf:
                continue
            self.bytes += len(packet)
            if late:
                packet, late = packet + late, b""
            elif kind == PUBLISH and packet[0] & QOS and weather.repeats:
                count += 1
                if count % weather.repeats == 0:
                    again[_number_of_publish(packet)] += 1
                    packet += bytes([packet[0] | DUP]) + packet[1:]
                elif count % weather.repeats == 1 and not reader.at_eof() and _more(reader):
                    late = packet
                    continue
            await self._carry(packet, writer)

    async def _carry(self, packet: bytes, writer: asyncio.StreamWriter) -> None:
        weather = self._weather
        if weather.dead:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._weather.dead)
        if weather.delay_s or weather.rate:
            await asyncio.sleep(weather.delay_s + (len(packet) / weather.rate if weather.rate else 0.0))
        writer.write(packet)
        await writer.drain()


async def _packets(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Whole MQTT control packets, until the connection ends, or what comes is none."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            head = await reader.readexactly(1)
            length = shift = 0
            while True:
                byte = await reader.readexactly(1)
                head += byte
                length |= (byte[0] & 0x7F) << shift
                shift += 7
                if byte[0] < 0x80:
                    break
                if shift > 21:
                    return
            yield head + await reader.readexactly(length)


def _more(reader: asyncio.StreamReader) -> bool:
    """Whether the next packet has begun to arrive: nothing is held back that would then wait for ever."""
    return bool(reader._buffer)  # type: ignore[attr-defined]


def _body(packet: bytes) -> int:
    """Where the body begins, behind the length."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    return at + 1


def _number_of_publish(packet: bytes) -> int:
    at = _body(packet)
    at += 2 + struct.unpack_from("!H", packet, at)[0]
    return int(struct.unpack_from("!H", packet, at)[0])


def _number_of_ack(packet: bytes) -> int:
    return int(struct.unpack_from("!H", packet, _body(packet))[0])


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: the other side learns that something went wrong, not that we are done."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
