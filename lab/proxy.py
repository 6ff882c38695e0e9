"""What may happen to the connection between a client and its broker, on purpose: a proxy that knows MQTT packets.

It never changes what a packet says, and does nothing that TCP, a router or a broker may not do: bytes come late, slowly
or never, connections die, acknowledgements get lost on the way, and what the broker delivers comes twice (with DUP set,
as at-least-once delivery allows) or out of order. The client's answer to the second copy stays in here: the broker
knows of one delivery only.

Packets inside TLS can be seen only where TLS ends. So it ends here: the proxy has the broker's certificate towards the
client, and the client's own towards the broker.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shared.config_base import BrokerSettings
from shared.credentials import tls_context

HOST = "127.0.0.1"
PUBLISH, PUBACK = 3, 4
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
DUP, QOS = 0x08, 0x06
CONNECT_S = 10.0
HANDSHAKE = 4000
"""Bytes of a TLS handshake with certificates on both sides, about."""


@dataclass(frozen=True)
class Weather:
    """How the link is now.

    rate       bytes per second, each way; None: as fast as the machine
    delay_s    that every packet, and a handshake, takes longer
    dead       half-open: nothing passes, and nobody is told, not even that the other side is gone
    deaf       acknowledgements of the broker do not arrive
    repeats    every so many-th delivery comes twice, or after the next one; 0: none does
    """

    rate: float | None = None
    delay_s: float = 0.0
    dead: bool = False
    deaf: bool = False
    repeats: int = 0


FAIR = Weather()


def server_context(broker: Path) -> ssl.SSLContext:
    """Of who is, to clients, the broker whose part of an authority lies in the folder; theirs it has to vouch for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=broker / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(broker / "broker.pem", broker / "broker.key")
    return context


class Proxy:
    """`async with Proxy(way, server) as proxy:` takes one client's connections and carries them to its broker."""

    def __init__(self, way: BrokerSettings, server: ssl.SSLContext) -> None:
        """way: the client's own to the broker; server: what convinces the client (`server_context`)."""
        self._way = way
        self._server = server
        self._client = tls_context(way)
        self._weather = FAIR
        self._changed = asyncio.Condition()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def way(self) -> BrokerSettings:
        """The client's way to the broker through here."""
        return self._way.model_copy(update={"url": f"mqtts://{HOST}:{self._listener.getsockname()[1]}"})

    async def __aenter__(self) -> "Proxy":
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        await self.cut()

    async def set(self, weather: Weather) -> None:
        """The weather from now on, for connections that are there and for new ones."""
        async with self._changed:
            self._weather = weather
            self._changed.notify_all()

    async def cut(self) -> int:
        """Reset every connection (RST, not FIN), both ends; how many there were."""
        cut = list(self._serving)
        for serving in cut:
            serving.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        return len(cut)

    # ----------------------------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            serving = asyncio.create_task(self._serve(sock))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        """One connection. It ends with RST, unless one side has ended it: that the other one learns in order."""
        broker = socket.socket()
        broker.setblocking(False)
        with contextlib.ExitStack() as reset, contextlib.suppress(OSError):  # no broker, no certificate, no patience
            for sock in (client, broker):
                _linger(sock, reset=True)
                reset.callback(sock.close)
            await self._pass(HANDSHAKE)  # a handshake is bytes, too
            async with asyncio.timeout(CONNECT_S):
                up_reader, up_writer = await self._connect(broker)
                reset.callback(up_writer.transport.abort)
                reader, writer = await self._take(client)
                reset.callback(writer.transport.abort)
            again: Counter[int] = Counter()
            async with asyncio.TaskGroup() as tasks:
                ways = {
                    tasks.create_task(_until_gone(self._up(reader, up_writer, again))),
                    tasks.create_task(_until_gone(self._down(up_reader, writer, again))),
                }
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                await self._pass(0)
                for way in ways:
                    way.cancel()
            reset.pop_all()
            for sock, end in ((client, writer), (broker, up_writer)):
                _linger(sock, reset=False)
                end.close()

    async def _connect(self, sock: socket.socket) -> Streams:
        """To the broker. OSError where there is none."""
        host = urlsplit(self._way.url).hostname
        await asyncio.get_running_loop().sock_connect(sock, (host, urlsplit(self._way.url).port))
        return await asyncio.open_connection(
            sock=sock, ssl=self._client, server_hostname=host, ssl_shutdown_timeout=CONNECT_S
        )

    async def _take(self, sock: socket.socket) -> Streams:
        """The client's side. OSError where it has no certificate."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=self._server, ssl_shutdown_timeout=CONNECT_S
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

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
        await self._pass(len(packet))
        writer.write(packet)
        await writer.drain()

    async def _pass(self, size: int) -> None:
        """Return when so many bytes are through; on a dead link, not before it is alive again."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._weather.dead)
        weather = self._weather
        if weather.delay_s or weather.rate:
            await asyncio.sleep(weather.delay_s + (size / weather.rate if weather.rate else 0.0))


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


def _linger(sock: socket.socket, *, reset: bool) -> None:
    """How it ends when it is closed: with RST, or with FIN after what is still to be sent."""
    with contextlib.suppress(OSError):  # it is closed
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))


async def _until_gone(way: Coroutine[None, None, None]) -> None:
    """A connection that is reset is one that has ended."""
    with contextlib.suppress(OSError):
        await way
