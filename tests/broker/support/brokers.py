"""Real Mosquittos that tests may kill, a fake broker that misbehaves on purpose, and short ways to wait for a link."""

import asyncio
import os
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from coordinator.broker import find_mosquitto, free_port
from shared.link import Connected, Link, Received

PATIENCE_S = 30
E = TypeVar("E")


class Mosquitto:
    """A broker on a port of its own. `lines` are added to its configuration."""

    def __init__(self, directory: Path, *lines: str, persistent: bool = False) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        directory.mkdir()
        config = [
            f"listener {self.port} 127.0.0.1",
            "max_queued_messages 20000",
            f"persistence {str(persistent).lower()}",
            f"persistence_location {directory}/",
            *(["user root"] if os.geteuid() == 0 else []),
            *(["allow_anonymous true"] if not any("allow_anonymous" in line for line in lines) else []),
            *lines,
        ]
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(config) + "\n")
        self.start()

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None, "these tests need mosquitto: apt-get install mosquitto"
        self._process = subprocess.Popen([program, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        while True:
            assert self._process.poll() is None, "mosquitto did not start"
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return

    def stop(self) -> None:
        """As `systemctl stop` would: what is persistent is saved."""
        self._process.terminate()
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


async def event(link: Link, kind: type[E]) -> E:
    """The next event of this kind; others are passed over."""
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(found := await link.receive(), kind):
            pass
        return found


async def online(link: Link) -> Connected:
    return await event(link, Connected)


async def message(link: Link) -> tuple[str, bytes]:
    found = await event(link, Received)
    return found.topic, found.payload


class Peer:
    """The fake broker's side of one connection: packets in, bytes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def packet(self) -> tuple[int, bytes]:
        """(kind in the upper four bits, body). IncompleteReadError when the client hangs up."""
        kind = (await self._reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return kind >> 4, await self._reader.readexactly(length)

    async def greet(self, properties: bytes = b"") -> int:
        """Take CONNECT and answer it as MQTT 5, or as 3.1.1 where asked so; the protocol level."""
        kind, body = await self.packet()
        assert kind == 1
        level = body[6]
        tail = bytes([len(properties)]) + properties if level == 5 else b""
        self.send(0x20, b"\x00\x00" + tail)
        return level

    def send(self, kind: int, body: bytes) -> None:
        assert len(body) < 128
        self.writer.write(bytes([kind, len(body)]) + body)


def number_of(publish: bytes) -> int:
    """The packet number in the body of a PUBLISH."""
    topic = struct.unpack_from("!H", publish)[0]
    return int(struct.unpack_from("!H", publish, 2 + topic)[0])
