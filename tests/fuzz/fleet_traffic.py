"""The target that is the coordinator: inbox, desk and engine under any traffic."""

import asyncio
import hashlib
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from typing import Any

from script import Script, clean_folder

from coordinator.chronicle import Chronicle
from coordinator.engine import RoundEngine
from coordinator.events import (
    CloseRound,
    DeviceFailed,
    DeviceOffline,
    OpenRound,
    Phase,
    Reported,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.fleet import Fleet
from coordinator.inbox import Arrived, Inbox, Told
from coordinator.uploads import UploadDesk
from shared.codec import encode_message
from shared.config import TransferSettings
from shared.config_rounds import RoundSettings
from shared.files import not_waiting_for_the_disk
from shared.link import Received
from shared.messages import (
    Blob,
    Capabilities,
    Chunk,
    Failure,
    Message,
    Offer,
    Presence,
    Receipt,
    Report,
    Want,
)
from shared.topics import Topics

TOPICS = Topics("f")


# --- the coordinator ------------------------------------------------------------------------------------------------

DEVICES = ("a", "b", "c")
CONTENT = {(d, n): hashlib.sha256(f"{d}{n}".encode()).digest() * 40 for d in DEVICES for n in range(6)}
"""What each device would upload for a round: three chunks of 512 bytes."""
PIECE = 512


class _Coordinator:
    """Inbox, desk and engine, with a conductor that has no disk: what it is told to close, it counts."""

    def __init__(self, folder: Path, script: Script) -> None:
        self.now = 0.0
        rounds = RoundSettings(
            count=1 + script.below(3),
            quorum=1 + script.below(2),
            min_devices=2,
            deadline_s=50,
            personalize_deadline_s=50,
            enough=script.of((None, 2)),
        )
        self.quorum = rounds.quorum
        self.engine = RoundEngine("r", rounds, seed=1)
        self.folder = folder
        self.spawned: list[Coroutine[None, None, None]] = []
        self.jobs: asyncio.Queue[Any] = asyncio.Queue()
        self.said: list[tuple[str, Any]] = []
        self.accepted: dict[int, set[str]] = {}
        self.closed: list[int] = []
        fleet = Fleet()
        self.inbox = Inbox(
            topics=TOPICS,
            engine=self.engine,
            fleet=fleet,
            chronicle=Chronicle(lambda _: None, fleet, lambda: self.now),
            answer=lambda device, message: self.said.append((device, message)),
            supply=lambda *_: None,
            spawn=self.spawned.append,
            jobs=self.jobs,
            clock=lambda: self.now,
        )

    def handle(self, event: Any) -> None:
        for command in self.engine.handle(event, self.now):
            match command:
                case CloseRound(number, _):
                    assert number == len(self.closed) + 1
                    assert len(self.accepted.get(number, ())) >= self.quorum
                    self.closed.append(number)
                    self.inbox.desk = None
                case OpenRound(number, _, cohort):
                    assert number == len(self.closed) + 1
                    assert cohort
        if self.engine.attempt and self.engine.phase is not Phase.PERSONALIZING and self.inbox.desk is None:
            place = self.folder / f"{self.engine.round}"
            place.mkdir(exist_ok=True)
            self.inbox.desk = UploadDesk(
                TransferSettings(window=2, granted_mib=4 * PIECE / 2**20, stall_s=5), limit=4000, folder=place
            )

    async def settle(self) -> None:
        while self.spawned or not self.jobs.empty():
            while self.spawned:
                await self.spawned.pop()
            while not self.jobs.empty():
                await self._do(self.jobs.get_nowait())

    async def _do(self, job: Any) -> None:
        match job:
            case Arrived(device, offer, path):
                if self.inbox.welcome(device, offer, "train"):
                    assert path.read_bytes() == CONTENT[device, offer.round]
                    assert device not in self.accepted.setdefault(offer.round, set()), "counted twice"
                    assert offer.round not in self.closed, "counted after the close"
                    self.accepted[offer.round].add(device)
                    self.inbox.done(device)
                    self.handle(UpdateAccepted(device, offer.round))
                    assert self.engine.judge(device, "r", offer.round, "train") is Verdict.DUPLICATE
                else:
                    self.inbox.done(device)
            case Told(device, report):
                if self.inbox.welcome(device, report, "personalize"):
                    self.handle(Reported(device, report.round))
            case event:
                self.handle(event)

    def check(self) -> None:
        if self.inbox.desk is not None:
            assert 0 <= self.inbox.desk.granted <= 4 * PIECE
        for device, message in self.said:
            if isinstance(message, Receipt) and message.accepted and message.answers == "offer":
                assert device in self.accepted.get(message.round, ()), "a receipt for what was not taken"
        self.said.clear()
        assert self.closed == list(range(1, self.engine.round))[: len(self.closed)]


def _uplink(script: Script) -> tuple[str, bytes]:
    """(topic, payload) of something that a device, or somebody in its place, publishes."""
    device = script.of(DEVICES)
    number = script.below(6)
    content = CONTENT[device, number]
    blob = Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content), chunk=PIECE)
    run = "r" if script.below(8) else "s"
    message: Message
    match script.below(10):
        case 0:
            able = Capabilities(profile="p", train=script.below(5) > 0, examples=1)
            presence = Presence(online=script.below(4) > 0, epoch=script.below(4), capabilities=able)
            return TOPICS.presence(device), encode_message(presence)
        case 1 | 2:
            message = Offer(run=run, round=number, blob=blob)
        case 3 | 4 | 5:
            index = script.below(4)
            data = content[index * PIECE : (index + 1) * PIECE] or b"x"
            message = Chunk(digest=blob.digest, index=index, data=data[::-1] if script.below(16) == 1 else data)
        case 6:
            message = Failure(run=run, round=number, code="c", reason="why")
        case 7:
            message = Report(run=run, round=number, examples=1, metrics={})
        case 8:
            message = Want(run=run, digest=blob.digest, ranges=((0, 1 + script.below(9)),))
        case _:
            return script.of((TOPICS.up(device), TOPICS.presence(device), "f/up/0/a", "f/x")), script.take(
                script.below(24)
            )
    return TOPICS.up(device), encode_message(message)


async def _coordinate(script: Script) -> None:
    with not_waiting_for_the_disk():
        world = _Coordinator(clean_folder(), script)
        for device in DEVICES:
            able = Capabilities(profile="p", train=True, examples=1)
            payload = encode_message(Presence(online=True, epoch=0, capabilities=able))
            world.inbox.receive(Received(TOPICS.presence(device), payload))
        await world.settle()
        for _ in range(80):
            if not script:
                break
            match script.below(10):
                case 0:
                    world.now += script.of((1, 6, 60))
                    world.inbox.stalled()
                    world.handle(Tick())
                case 1:
                    world.handle(script.of((DeviceFailed("a", 1, "x"), DeviceOffline("b"))))
                case _:
                    world.inbox.receive(Received(*_uplink(script)))
            if script.below(4):
                await world.settle()
            world.check()
        await world.settle()
        world.check()


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def coordinator(data: bytes) -> None:
    """Any traffic of three devices, and of others: no update is counted twice, without its receipt, after the close,
    or with other bytes than were offered; credit stays bounded; rounds close once, in order, with their quorum."""
    _runner().run(_coordinate(Script(data)))
