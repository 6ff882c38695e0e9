"""A coordinator over a broker in memory that does as the test says, and what it asks for."""

import asyncio
from pathlib import Path
from typing import Any, TypeVar

from shared.chunks import Assembly, describe
from shared.codec import decode_presence, decode_uplink, encode_message
from shared.link import Received
from shared.memory_link import MemoryBroker
from shared.messages import (
    Blob,
    Chunk,
    CoordinatorState,
    Failure,
    Grant,
    Message,
    Offer,
    Plan,
    Receipt,
    Report,
    Task,
)
from shared.profiles import Profile
from shared.topics import Topics
from shared.transfer import publish_blob

M = TypeVar("M", bound=Message)


def make_profile(**training: Any) -> Profile:
    return Profile.model_validate(
        {"id": "test", "title": "test", "cores": 2, "memory_mib": 4096, "training": {"memory_mib": 256, **training}}
    )


def make_task(round_: int = 1, *, action: Any = "train", run: str = "run", digest: str = "a", **fields: Any) -> Task:
    return Task(
        run=run,
        action=action,
        round=round_,
        plan=fields.pop("plan", Plan(model="smallcnn", algorithm="fedavg")),
        payload=fields.pop("payload", Blob(digest=digest * 64, size=1000, chunk=512)),
        time_left_s=fields.pop("time_left_s", 60.0),
        **fields,
    )


class ScriptedCoordinator:
    """Hears everything that devices send, answers nothing by itself."""

    def __init__(self, broker: MemoryBroker, folder: Path) -> None:
        self.broker = broker
        self.topics = Topics("talaria")
        self.heard: list[tuple[str, Message]] = []
        self._link = broker.link("coordinator")
        self._folder = folder
        self._news = asyncio.Condition()
        self._loop: asyncio.Task[None] | None = None

    async def open(self, epoch: int = 1) -> None:
        await self._link.open()
        self._loop = asyncio.create_task(self._listen())
        await self._link.subscribe(self.topics.all_presence, self.topics.all_up)
        await self.online(epoch)

    async def close(self) -> None:
        assert self._loop is not None
        self._loop.cancel()
        await self._link.close()

    async def online(self, epoch: int) -> None:
        state = CoordinatorState(online=True, epoch=epoch, run="run")
        await self._link.publish(self.topics.coordinator, encode_message(state), retain=True)

    async def publish(self, data: bytes, chunk: int = 1024) -> Blob:
        """Leave a payload with the broker."""
        path = self._folder / "published"
        path.write_bytes(data)
        blob = describe(path, chunk)
        await publish_blob(self._link, self.topics, path, blob)
        return blob

    async def ask(self, task: Task, device: str = "device") -> None:
        await self._link.publish(self.topics.task(device), encode_message(task), retain=True)

    async def withdraw(self, device: str = "device") -> None:
        await self._link.publish(self.topics.task(device), b"", retain=True)

    async def say(self, message: Message | bytes, device: str = "device") -> None:
        payload = message if isinstance(message, bytes) else encode_message(message)
        await self._link.publish(self.topics.down(device), payload)

    async def receipt(self, answer: Offer | Report | Failure, *, accepted: bool = True, code: str = "accepted") -> None:
        await self.say(Receipt(run=answer.run, round=answer.round, answers=answer.kind, accepted=accepted, code=code))

    async def hears(self, kind: type[M], count: int = 1, *, timeout_s: float = 20.0) -> M:
        """The `count`-th message of that kind that was heard from the start, as soon as it is."""
        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    def all(self, kind: type[M]) -> list[M]:
        return [message for _, message in self.heard if isinstance(message, kind)]

    async def pull(self, offer: Offer, path: Path) -> bytes:
        """Grant everything and put it together; what was heard before counts."""
        await self.say(Grant(run=offer.run, digest=offer.blob.digest, ranges=((0, offer.blob.chunks),)))
        return await self.assembled(offer, path)

    async def assembled(self, offer: Offer, path: Path) -> bytes:
        assembly = Assembly(path, offer.blob)

        def take() -> bool:
            for chunk in self.all(Chunk):
                if chunk.digest == offer.blob.digest:
                    assembly.add(chunk.index, chunk.data)
            return assembly.complete

        async with asyncio.timeout(20.0), self._news:
            await self._news.wait_for(take)
        return assembly.finish().read_bytes()

    async def _listen(self) -> None:
        while True:
            event = await self._link.receive()
            if isinstance(event, Received) and event.payload:
                presence = "/presence/" in event.topic
                message = decode_presence(event.payload) if presence else decode_uplink(event.payload)
                async with self._news:
                    self.heard.append((event.topic, message))
                    self._news.notify_all()
