"""A device that speaks the real protocol over any link, and trains nothing: what it answers is up to the test."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.chunks import describe
from shared.codec import decode_downlink, decode_task, encode_message, encode_payload, open_payload, unsealed
from shared.link import Connected, OpenLink, Received, Will
from shared.messages import Capabilities, Chunk, Failure, Grant, Message, Offer, Presence, Receipt, Report, Task
from shared.tensors import Subnet, Tensors
from shared.topics import Topics
from shared.transfer import Download, chunk_size, send_chunks

LIMIT = 2**30
EXAMPLES = 10

Train = Callable[[Tensors, Task], bytes | Failure | None]
"""What to answer to a task: the bytes of an update, a failure, or nothing at all."""


def answering(change: Callable[[str, Tensors], Tensors], name: str, examples: int = EXAMPLES) -> Train:
    """An honest update: `change(device, received)`."""

    def train(tensors: Tensors, task: Task) -> bytes:
        subnet = Subnet(change(name, tensors))
        return encode_payload(
            subnet,
            run=task.run,
            round=task.round,
            examples=examples,
            weight=float(examples),
            metrics={"accuracy": 0.5, "test_examples": float(examples)},
        )

    return train


def echo(tensors: Tensors, task: Task) -> bytes | Failure | None:
    """What was received, unchanged."""
    return answering(lambda _, received: received, "")(tensors, task)


@dataclass
class FakeDevice:
    """One device. `run` until cancelled; what it saw is in `tasks`, `receipts` and `received`."""

    name: str
    open_link: OpenLink
    folder: Path
    train: Train = echo
    fleet: str = "talaria"
    epoch: int = 1
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(profile="container", train=True, examples=EXAMPLES)
    )
    tasks: list[Task] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    received: dict[int, Tensors] = field(default_factory=dict)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.topics = Topics(self.fleet)
        self.link = self.open_link(self.name, Will(self.topics.presence(self.name), self._presence(False)))
        self._download: Download | None = None
        self._working = False
        self._receipt = asyncio.Event()
        self._changed = asyncio.Event()
        self._accepted: set[tuple[str, int]] = set()
        self._offer: tuple[Offer, Path] | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.link.open()
        try:
            while True:
                match await self.link.receive():
                    case Connected(session_present):
                        self._do(self._arrive(subscribe=not session_present))
                    case Received(topic, payload):
                        await self._receive(topic, payload)
        finally:
            for job in self._jobs:
                job.cancel()
            await self.link.close()

    async def say(self, message: Message) -> None:
        await self.link.publish(self.topics.up(self.name), encode_message(message))

    async def settled(self, count: int) -> None:
        """Return when that many receipts have come."""
        while len(self.receipts) < count:
            self._receipt.clear()
            await self._receipt.wait()

    async def until(self, true: Callable[[], bool]) -> None:
        """Return when that is so; looked at with every task that comes, and every payload that is here."""
        while not true():
            self._changed.clear()
            await self._changed.wait()

    async def announce(self, online: bool = True) -> None:
        await self.link.publish(self.topics.presence(self.name), self._presence(online), retain=True)

    def _presence(self, online: bool) -> bytes:
        capabilities = self.capabilities if online else None
        return encode_message(Presence(online=online, epoch=self.epoch, capabilities=capabilities))

    async def _arrive(self, *, subscribe: bool) -> None:
        if subscribe:
            await self.link.subscribe(self.topics.task(self.name), self.topics.down(self.name))
        await self.announce()
        if self._offer is not None:
            await self.say(self._offer[0])

    async def _receive(self, topic: str, payload: bytes) -> None:
        if topic == self.topics.task(self.name):
            if payload:
                await self._asked(decode_task(unsealed(payload)))
            return
        if topic != self.topics.down(self.name):
            digest, index = self.topics.chunk_index(topic)
            if payload:
                await self._chunk(digest, index, payload)
            return
        match decode_downlink(unsealed(payload)):
            case Chunk(digest=digest, index=index, data=data):
                await self._chunk(digest, index, data)
            case Grant() as grant:
                self._granted(grant)
            case Receipt() as receipt:
                self.receipts.append(receipt)
                self._receipt.set()
                if receipt.accepted and self._offer is not None:
                    self._accepted.add((receipt.run, receipt.round))
                self._offer = None

    async def _asked(self, task: Task) -> None:
        key = (task.run, task.round, task.action)
        known = bool(self.tasks) and key == (self.tasks[-1].run, self.tasks[-1].round, self.tasks[-1].action)
        self.tasks.append(task)
        self._changed.set()
        if not known:
            self._offer = None  # overtaken
        if known and self._offer is not None:
            await self.say(self._offer[0])
        elif (task.run, task.round) not in self._accepted and not (known and self._working):
            self._working = True
            await self._fetch(task)

    async def _fetch(self, task: Task) -> None:
        self._download = Download(
            self.link, self.topics, self.name, task.run, task.payload, self.folder / f"{task.round}.payload"
        )
        if self._download.complete:
            await self._fetched()
        else:
            self._do(self._download.start())

    async def _chunk(self, digest: str, index: int, data: bytes) -> None:
        download = self._download
        if download is not None and download.blob.digest == digest and await download.on_chunk(index, data):
            await self._fetched()

    async def _fetched(self) -> None:
        assert self._download is not None
        path = self._download.finish()
        self._do(self._download.close())
        self._download, self._working = None, False
        task = self.tasks[-1]
        with open_payload(path, limit=LIMIT) as payload:
            assert (payload.header.run, payload.header.round) == (task.run, task.round)
            tensors = {name: array.copy() for name, array in payload.subnet.tensors.items()}
        self.received[task.round] = tensors
        self.fetched.set()
        self._changed.set()
        answer = self.train(tensors, task)
        if isinstance(answer, Failure):
            self._working = False
            self._do(self.say(answer))
        elif answer is not None and task.action == "personalize":
            metrics = {"accuracy": 1.0, "test_examples": float(EXAMPLES)}
            self._do(self.say(Report(run=task.run, round=task.round, examples=EXAMPLES, metrics=metrics)))
        elif answer is not None:
            update = self.folder / f"{task.round}.update"
            update.write_bytes(answer)
            self._offer = Offer(run=task.run, round=task.round, blob=describe(update, chunk_size(4096))), update
            self._do(self.say(self._offer[0]))

    def _granted(self, grant: Grant) -> None:
        if self._offer is not None and grant.digest == self._offer[0].blob.digest:
            offer, path = self._offer
            self._do(send_chunks(self.link, self.topics.up(self.name), path, offer.blob, grant.ranges))

    def _do(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
