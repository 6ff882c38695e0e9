"""What devices say: decoded, judged and answered at once; what takes time becomes a job. Nothing in here ends a run."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from coordinator.chronicle import Chronicle
from coordinator.events import Action, DeviceAsleep, DeviceFailed, DeviceOffline, Event, Verdict
from coordinator.fleet import Fleet
from coordinator.rounds import Rounds
from coordinator.uploads import Grants, UploadDesk
from shared.chunks import Assembly
from shared.codec import decode_presence, decode_uplink, decode_vitals
from shared.errors import DigestMismatch, RefusedUpdate, WireError
from shared.link import Received, packet_size
from shared.messages import Chunk, Downlink, Failure, Offer, Presence, Receipt, Report, Want
from shared.topics import Topics


@dataclass(frozen=True)
class Arrived:
    """An offered update is here, whole and on the disk."""

    device: str
    offer: Offer
    path: Path


@dataclass(frozen=True)
class Told:
    """A welcome report has to be written down."""

    device: str
    report: Report


Job: TypeAlias = Event | Arrived | Told

EXPLAINED = {
    Verdict.FOREIGN_RUN: "it belongs to another run",
    Verdict.STALE: "the round is closed",
    Verdict.FUTURE: "the round has not been opened",
    Verdict.NOT_IN_COHORT: "this device was not asked",
    Verdict.QUARANTINED: "this device is in quarantine",
}


class Inbox:
    """One message at a time.

    answer  sends a message to a device, in the background
    supply  sends the chunks that a Want names
    spawn   runs what takes time beside the loop
    jobs    where events for the engine, and work, go; done in this order by the owner
    """

    def __init__(
        self,
        *,
        topics: Topics,
        engine: Rounds,
        fleet: Fleet,
        chronicle: Chronicle,
        answer: Callable[[str, Downlink], None],
        supply: Callable[[str, Want], None],
        spawn: Callable[[Coroutine[None, None, None]], object],
        jobs: "asyncio.Queue[Job]",
        clock: Callable[[], float],
    ) -> None:
        self.desk: UploadDesk | None = None
        """Where updates of the open round are received; None while no round is open."""
        self._topics = topics
        self._engine = engine
        self._fleet = fleet
        self._chronicle = chronicle
        self._answer = answer
        self._supply = supply
        self._spawn = spawn
        self._jobs = jobs
        self._clock = clock
        self._arrived: set[str] = set()
        self._doubles: set[str] = set()

    def receive(self, received: Received) -> None:
        """One message of any topic that we subscribe to."""
        device = "?"
        try:
            device = self._topics.sender(received.topic)
            if received.topic == self._topics.presence(device):
                self._presence(device, received.payload)
                return
            if not received.retained:  # what the broker kept says nothing of now
                self._fleet[device].last_seen = self._clock()
            if received.topic == self._topics.vitals(device):
                self._fleet.vitals(device, decode_vitals(received.payload), self._clock())
            else:
                self._uplink(device, received.payload)
        except WireError as error:
            self._chronicle.rejected(device, error.code, str(error))

    def done(self, device: str) -> None:
        """Its update was dealt with, whatever came of it: the device may offer again. Until then it is not heard."""
        self._arrived.discard(device)

    def stalled(self) -> None:
        """Time has passed at the desk."""
        if self.desk is not None:
            self._grant(self.desk.tick(self._clock()))

    def refuse(self, device: str, said: Offer | Report, code: str, reason: str) -> None:
        """Tell the device, the live view and the journal."""
        self._chronicle.rejected(device, code, reason)
        self.receipt(device, said, code, reason)

    def receipt(self, device: str, said: Offer | Failure | Report, code: str = "accepted", reason: str = "") -> None:
        receipt = Receipt(
            run=said.run,
            round=said.round,
            answers=said.kind,
            accepted=code == "accepted",
            code=code,
            reason=reason[:500],
        )
        self._answer(device, receipt)

    def welcome(self, device: str, said: Offer | Report, action: Action) -> bool:
        """Whether to go on with it; if not, it has been answered."""
        verdict = self._engine.judge(device, said.run, said.round, action)
        if verdict is Verdict.DUPLICATE:
            self.receipt(device, said)
        elif verdict is not Verdict.WELCOME:
            self.refuse(device, said, verdict, EXPLAINED[verdict])
        return verdict is Verdict.WELCOME

    # ----------------------------------------------------------------------------------------------------------------

    def _presence(self, device: str, payload: bytes) -> None:
        presence = decode_presence(payload)
        self._suspect(device, presence)
        event = self._fleet.presence(device, presence, self._clock())
        if event is None:
            return
        if isinstance(event, DeviceOffline | DeviceAsleep) and self.desk is not None:
            self.desk.gone(device)
        capabilities = self._fleet[device].capabilities
        self._chronicle.tell(
            "device",
            device=device,
            online=presence.online,
            asleep_s=event.seconds if isinstance(event, DeviceAsleep) else None,
            profile=capabilities.profile if capabilities else "",
            unfit=self._engine.unfit(capabilities),
        )
        self._jobs.put_nowait(event)

    def _suspect(self, device: str, presence: Presence) -> None:
        """Starts of an agent only count up, and only one that lives says so: told once per device."""
        known = self._fleet[device].epoch
        if presence.online and presence.epoch < known and device not in self._doubles:
            self._doubles.add(device)
            self._chronicle.tell(
                "warning",
                text=f"device {device}: start {presence.epoch} came after start {known}: two agents use its name, or "
                "its state is from a backup. Give each agent a name of its own, or enrol it anew if its key "
                "is not its own any more",
            )

    def _uplink(self, device: str, payload: bytes) -> None:
        match decode_uplink(payload):
            case Chunk() as chunk:
                self._chunk(device, chunk, packet_size(self._topics.up(device), len(payload)))
            case Offer() as offer:
                self._offer(device, offer)
            case Want() as want:
                self._supply(device, want)
            case Failure() as failure:
                self._failure(device, failure)
            case Report() as report:
                if self.welcome(device, report, "personalize"):
                    self._jobs.put_nowait(Told(device, report))

    def _failure(self, device: str, failure: Failure) -> None:
        """Noted where it matters, and always settled: there is nothing in it that could be lost."""
        if self._engine.judge(device, failure.run, failure.round) is Verdict.WELCOME:
            self._chronicle.failed(device, failure.round, failure.code, failure.reason)
            self._jobs.put_nowait(DeviceFailed(device, failure.round, failure.code))
        self.receipt(device, failure)

    def _offer(self, device: str, offer: Offer) -> None:
        if device in self._arrived or not self.welcome(device, offer, "train"):
            return
        if self.desk is None:
            return  # the round is being closed: the device offers again
        try:
            self._grant(self.desk.offer(device, offer, self._clock()))
        except RefusedUpdate as error:
            self.refuse(device, offer, error.code, str(error))
            self._jobs.put_nowait(DeviceFailed(device, offer.round, error.code))
        self._collect(device)

    def _chunk(self, device: str, chunk: Chunk, packet: int) -> None:
        if self.desk is not None:
            self._chronicle.received(device, packet)
            self._grant(self.desk.chunk(device, chunk, self._clock()))
            self._collect(device)

    def _collect(self, device: str) -> None:
        """Go on with the device's update if it is complete."""
        if self.desk is not None and (completed := self.desk.completed(device)) is not None:
            offer, assembly = completed
            self._arrived.add(device)
            self._spawn(self._verify(device, offer, assembly))

    async def _verify(self, device: str, offer: Offer, assembly: Assembly) -> None:
        """Devices wait for the disk at the same time, not one after the other."""
        try:
            self._jobs.put_nowait(Arrived(device, offer, await asyncio.to_thread(assembly.finish)))
        except DigestMismatch as error:
            assembly.discard()
            self.done(device)
            self.refuse(device, offer, error.code, str(error))
            self._jobs.put_nowait(DeviceFailed(device, offer.round, error.code))
        except FileNotFoundError:  # the round was closed, and its folder is gone
            self.done(device)

    def _grant(self, grants: Grants) -> None:
        for device, grant in grants:
            self._answer(device, grant)
