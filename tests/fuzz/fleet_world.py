"""A coordinator without a disk and a broker: inbox, desk and engine as they are, and what must hold of them."""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from fleet_words import DEVICES, PIECE, blob, chunk, content, offer, presence, report
from script import empty

from coordinator.chronicle import Chronicle
from coordinator.events import (
    AskDevices,
    CloseRound,
    Event,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Quarantined,
    Released,
    Reported,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.fleet import Fleet
from coordinator.inbox import Arrived, Inbox, Job, Told
from coordinator.rounds import Rounds
from coordinator.uploads import UploadDesk
from shared.config import TransferSettings
from shared.config_rounds import RoundSettings
from shared.link import Received
from shared.messages import Downlink, Grant, Offer, Receipt, Report
from shared.topics import Topics

TOPICS = Topics("f")
GRANTED = 3 * PIECE
TRANSFER = TransferSettings(window=2, granted_mib=GRANTED / 2**20, stall_s=5)


class World:
    """What is on the disk survives `restart`: the snapshot, what was accepted, and who is in quarantine."""

    def __init__(self, folder: Path, engine: type[Rounds], settings: RoundSettings) -> None:
        self.now = 0.0
        self.folder, self.settings, self._make = folder, settings, engine
        self.accepted: dict[int, list[tuple[str, int]]] = defaultdict(list)
        """Round -> the updates that are folded into it: device, and the round that each started from."""
        self.counted: set[tuple[str, int]] = set()
        self.asked: set[tuple[str, int]] = set()
        self.reported: list[str] = []
        self.quarantined: set[str] = set()
        self.closed = 0
        self.finished = False
        self.presences: dict[str, bytes] = {}
        """What the broker keeps."""
        self.begin()
        self.saved = self.engine.snapshot()

    def begin(self) -> None:
        self.engine = self._make("r", self.settings, seed=1)
        self.spawned: list[Coroutine[None, None, None]] = []
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.grants: dict[str, list[Grant]] = {device: [] for device in DEVICES}
        fleet = Fleet()
        self.inbox = Inbox(
            topics=TOPICS,
            engine=self.engine,
            fleet=fleet,
            chronicle=Chronicle(lambda _: None, fleet, lambda: self.now),
            answer=self._answered,
            supply=lambda *_: None,
            spawn=self.spawned.append,
            jobs=self.jobs,
            clock=lambda: self.now,
        )

    def restart(self) -> None:
        """Killed between two jobs, and started again; devices are told of it, and their presence is retained."""
        for coroutine in self.spawned:
            coroutine.close()
        self.begin()
        for device in sorted(self.quarantined):
            self.engine.handle(Quarantined(device), self.now)
        number = self.saved.closed + 1
        training = self.saved.phase in (Phase.GATHERING, Phase.COLLECTING)
        answered = self.accepted[number] if training else [(device, number) for device in self.reported]
        self.engine.restore(self.saved, sorted(answered), self.now)
        self.publish()
        for device, payload in self.presences.items():
            self.inbox.receive(Received(TOPICS.presence(device), payload, retained=True))

    # --- what comes in ----------------------------------------------------------------------------------------------

    def hear(self, device: str, payload: bytes) -> None:
        self.inbox.receive(Received(TOPICS.up(device), payload))

    def meet(self, device: str, payload: bytes) -> None:
        """Its presence."""
        self.presences[device] = payload
        self.inbox.receive(Received(TOPICS.presence(device), payload))

    def _answered(self, device: str, message: Downlink) -> None:
        if isinstance(message, Grant):
            self.grants[device].append(message)
        if isinstance(message, Receipt) and message.accepted:
            known = {"offer": (device, message.round) in self.counted, "report": device in self.reported}
            assert known.get(message.answers, True), "a receipt for what was not taken"
        if isinstance(message, Receipt) and message.code == "digest_mismatch":
            assert self.spoilt, "an update is refused whose chunks were all right"

    spoilt = False
    """Whether any chunk was ever sent with other bytes."""

    # --- work -------------------------------------------------------------------------------------------------------

    def verify(self, which: int = 0) -> None:
        """The disk is done with one update."""
        if self.spawned:
            _at_once(self.spawned.pop(which % len(self.spawned)))

    def work(self) -> None:
        """One job, as the conductor does it."""
        if self.jobs.empty():
            return
        match self.jobs.get_nowait():
            case Arrived(device, said, path):
                if self.inbox.welcome(device, said, "train"):
                    self._count(device, said, path)
                    self.inbox.done(device)
                    self.handle(UpdateAccepted(device, said.round))
                    assert self.engine.judge(device, "r", said.round, "train") in (Verdict.DUPLICATE, Verdict.STALE)
                else:
                    self.inbox.done(device)
            case Told(device, told):
                if self.inbox.welcome(device, told, "personalize"):
                    self._report(device, told)
                    self.handle(Reported(device, told.round))
            case event:
                self.handle(event)

    def _count(self, device: str, said: Offer, path: Path) -> None:
        start, number = said.round, self.engine.round
        assert path.read_bytes() == content(device, start)
        path.unlink()
        assert (device, start) not in self.counted, "counted twice"
        assert (device, start) in self.asked, "nobody asked for it"
        assert device not in self.quarantined
        oldest = number - (self.settings.max_staleness if self.settings.mode == "buffered" else 0)
        assert oldest <= start <= number == self.closed + 1, "counted after the close"
        assert len(self.accepted[number]) < (self.settings.enough or len(DEVICES)), "more than enough"
        self.counted.add((device, start))
        self.accepted[number].append((device, start))
        self.inbox.receipt(device, said)

    def _report(self, device: str, told: Report) -> None:
        assert self.closed == self.settings.count == told.round - 1
        assert device not in self.quarantined
        assert device not in self.reported, "reported twice"
        self.reported.append(device)
        self.inbox.receipt(device, told)

    def settle(self) -> None:
        while self.spawned or not self.jobs.empty():
            self.verify()
            self.work()
        assert not self.inbox._arrived, "a device is not heard any more"

    def handle(self, event: Event) -> None:
        if isinstance(event, Quarantined):
            self.quarantined.add(event.device)
        if isinstance(event, Released):
            self.quarantined.discard(event.device)
        commands = self.engine.handle(event, self.now)
        for command in commands:
            assert not self.finished
            match command:
                case OpenRound(number, _, cohort):
                    assert cohort
                    self._ask(number, [(device, self.engine.start(device)) for device in cohort])
                case AskDevices(number, devices):
                    assert devices
                    assert set(devices) <= set(self.engine.cohort)
                    self._ask(number, [(device, number) for device in devices])
                case CloseRound(number, _):
                    assert number == self.closed + 1 <= self.settings.count
                    assert len(self.accepted[number]) >= self.settings.quorum, "closed without its quorum"
                    self.closed = number
                    if self.settings.mode == "synchronous" or self.closed == self.settings.count:
                        self.inbox.desk = None
                        empty(self.folder)
                case OpenPersonalization(number):
                    assert number == self.closed + 1 == self.settings.count + 1
                case Finish(reported, failed, absent):
                    assert sorted(reported) == sorted(self.reported)
                    assert sorted({*reported, *failed, *absent}) == sorted([*reported, *failed, *absent])
                    self.finished = True
        if commands or len(self.engine.known) > len(self.saved.known):
            self.saved = self.engine.snapshot()
        self.publish()

    def _ask(self, number: int, whom: list[tuple[str, int]]) -> None:
        assert number == self.closed + 1
        assert self.settings.cohort is None or len(self.engine.cohort) <= self.settings.cohort
        for device, start in whom:
            assert device not in self.quarantined
            assert (device, start) not in self.counted, "asked for what it gave"
            self.asked.add((device, start))

    def publish(self) -> None:
        if self.engine.attempt and self.engine.phase in (Phase.GATHERING, Phase.COLLECTING) and not self.inbox.desk:
            self.inbox.desk = UploadDesk(TRANSFER, limit=4000, folder=self.folder)

    # --- what must be ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        desk = self.inbox.desk
        if desk is not None:
            assert 0 <= desk.granted <= GRANTED
            assert (desk.granted > 0) == (desk.next_deadline() is not None), "credit that nobody has"
        due = self.engine.next_deadline(self.now)
        open_ = self.engine.phase in (Phase.COLLECTING, Phase.PERSONALIZING)
        assert due > self.now if due is not None else not open_
        assert self.engine.round == self.closed + 1
        for device in DEVICES:
            if action := self.engine.wanted(device):
                verdict = self.engine.judge(device, "r", self.engine.start(device), action)
                assert verdict is Verdict.WELCOME, "it works in vain"

    def end(self) -> None:
        """Every run ends once all devices are there and do what they are asked; what was granted comes back."""
        for device in sorted(self.quarantined):
            self.handle(Released(device))
        for device in DEVICES:
            self.meet(device, presence(9, True))
        for _ in range(4 * (self.settings.count + 2)):
            if self.finished:
                return
            self.settle()
            for device in DEVICES:
                self.obey(device)
            self.settle()
            self.pass_time(20)
            self.check()
        assert self.finished, "the run does not end"

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.inbox.stalled()
        self.handle(Tick())

    def obey(self, device: str) -> None:
        """The device does what is wanted of it, as far as it is granted."""
        match self.engine.wanted(device):
            case "train":
                number = self.engine.start(device)
                self.hear(device, offer(device, number))
                self.upload(device, number)
            case "personalize":
                self.hear(device, report(self.engine.round))
            case None:  # it does not know of its quarantine
                self.upload(device, self.engine.start(device))

    def upload(self, device: str, number: int) -> None:
        """Everything that was granted of it, and what is granted meanwhile."""
        digest = blob(device, number).digest
        while self.grants[device]:
            grant = self.grants[device].pop(0)
            for first, last in grant.ranges if grant.digest == digest else ():
                for index in range(first, last):
                    self.hear(device, chunk(device, number, index))


class _Loop:
    """An event loop for coroutines that only wait for threads: what a thread would do is done at once."""

    async def run_in_executor(self, _: object, call: Any) -> Any:
        return call()


_LOOP: Any = _Loop()


def _at_once(coroutine: Coroutine[None, None, None]) -> None:
    asyncio._set_running_loop(_LOOP)
    try:
        coroutine.send(None)
    except StopIteration:
        return
    finally:
        asyncio._set_running_loop(None)
    raise AssertionError("it waits for something else than a thread")
