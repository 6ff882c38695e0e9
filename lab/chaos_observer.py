"""Looks on during a chaos run: what is said at the broker itself, and what a process takes."""

import asyncio
import contextlib
from pathlib import Path

from shared.codec import decode_any
from shared.config_base import BrokerSettings
from shared.errors import MalformedMessage
from shared.link import Connected, Received
from shared.messages import Chunk, Receipt, Sealed
from shared.mqtt import MqttLink
from shared.topics import Topics


class Observer:
    """Sees what coordinator and devices say to each other, at the broker itself, as far as the broker lives."""

    def __init__(self, fleet: str, way: BrokerSettings) -> None:
        self.receipts: set[tuple[str, int, str]] = set()
        """(run, round, device) of accepted updates."""
        self.uploading = asyncio.Event()
        self._topics = Topics(fleet)
        self._link = MqttLink(way, "chaos-observer", lasting=False)

    async def watch(self) -> None:
        await self._link.open()
        try:
            while not isinstance(await self._link.receive(), Connected):
                pass
            await self._link.subscribe(self._topics.down("+"), self._topics.all_up)
            while True:
                event = await self._link.receive()
                if isinstance(event, Received):
                    self._see(event.topic, event.payload)
        finally:
            await self._link.close()

    def _see(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(MalformedMessage):
            message = decode_any(payload)
            if isinstance(message, Sealed):
                message = decode_any(message.body)
            if isinstance(message, Chunk) and "/up/" in topic:
                self.uploading.set()
            if isinstance(message, Receipt) and message.accepted and message.answers == "offer":
                self.receipts.add((message.run, message.round, topic.rpartition("/")[2]))


def resident_mib(pid: int) -> float:
    """Memory of a process; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in text.splitlines() if line.startswith("VmRSS:"))
    return next((int(line[1]) / 1024 for line in lines), 0.0)
