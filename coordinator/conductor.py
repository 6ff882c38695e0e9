"""Carries out what the engine commands: on the disk first, then in public."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from coordinator.board import Board
from coordinator.checkpoints import Checkpoint, RunDirectory
from coordinator.chronicle import Chronicle
from coordinator.events import (
    AbandonRound,
    AskDevices,
    CloseRound,
    Command,
    DeviceAsleep,
    DeviceFailed,
    DeviceOnline,
    Event,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Prepared,
    Reported,
    Tick,
    UpdateAccepted,
)
from coordinator.fleet import Fleet
from coordinator.inbox import Arrived, Inbox, Job, Told
from coordinator.journal import Line
from coordinator.orders import Orders
from coordinator.payloads import Payloads
from coordinator.quarantine import Quarantine
from coordinator.rounds import Rounds
from coordinator.uploads import UploadDesk
from shared.config import RunConfig
from shared.errors import RefusedUpdate
from shared.messages import Offer
from shared.topics import Topics

if TYPE_CHECKING:
    from coordinator.ledger import Ledger

News: TypeAlias = tuple[str, dict[str, Any]]
"""What the live view is told once it is on the disk."""


class Conductor:
    """Does one job after the other.

    idle  whether no further job is waiting: then the disk is asked to confirm what was accepted, for all at once
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        engine: Rounds,
        directory: RunDirectory,
        ledger: "Ledger",
        fleet: Fleet,
        chronicle: Chronicle,
        board: Board,
        inbox: Inbox,
        payloads: Payloads,
        topics: Topics,
        quarantine: Quarantine,
        idle: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._quarantine = quarantine
        self._config = config
        self._engine = engine
        self._directory = directory
        self._ledger = ledger
        self._fleet = fleet
        self._chronicle = chronicle
        self._board = board
        self._inbox = inbox
        self._payloads = payloads
        self._orders = Orders(
            engine=engine,
            ledger=ledger,
            fleet=fleet,
            chronicle=chronicle,
            board=board,
            payloads=payloads,
            topics=topics,
            in_full_s=config.rounds.deadline_s,
            clock=clock,
        )
        self._idle = idle
        self._clock = clock
        self._line: Line | None = None
        self._unconfirmed: list[tuple[str, Offer]] = []
        self._into = 0
        """The round that what is unconfirmed belongs to."""
        self._buffered = config.rounds.mode == "buffered"
        self._known = 0

    async def resume(self, checkpoint: Checkpoint) -> None:
        """Continue where the checkpoint, and what lies beside it on the disk, says."""
        snapshot, number = checkpoint.engine, checkpoint.round
        self._line = checkpoint.line
        for change in self._quarantine.look():
            self._engine.handle(change, self._clock())
        entries: dict[str, dict[str, Any]] = {}
        if snapshot.phase is Phase.PERSONALIZING:
            reports = self._directory.reports().items()
            answered = [(device, number) for device, report in reports if report.round == number]
        else:
            entries = await asyncio.to_thread(self._ledger.accepted, number)
            answered = [(entry["device"], entry["start"]) for entry in entries.values()]
        self._engine.restore(snapshot, answered, self._clock())
        await self._payloads.turn(number, self._engine.starts())
        if snapshot.phase is Phase.PERSONALIZING or snapshot.attempt:
            self._payloads.recut()
            self._chronicle.begin(self._payloads.largest)
            self._chronicle.resumed(snapshot.asked, entries)
            await self._publish()

    async def do(self, job: Job) -> None:
        """OSError where the disk refuses, StateError where it lost something: the run cannot go on then."""
        if isinstance(job, Arrived):
            event = await self._admit(job)
        else:
            event = await self._write_down(job) if isinstance(job, Told) else job
        self._quarantine.follow(event, len(self._engine.known))
        for change in self._quarantine.look():
            await self._apply(change)
        await self._apply(event)

    # --- work -------------------------------------------------------------------------------------------------------

    async def _admit(self, arrived: Arrived) -> Event:
        device, offer, path, number = arrived.device, arrived.offer, arrived.path, self._engine.round
        try:
            if not self._inbox.welcome(device, offer, "train"):
                return Tick()
            capabilities = self._fleet[device].capabilities
            examples = capabilities.examples if capabilities else 0
            entry = await asyncio.to_thread(self._ledger.take, device, number, path, examples, start=offer.round)
        except RefusedUpdate as error:
            self._inbox.refuse(device, offer, error.code, str(error))
            return DeviceFailed(device, offer.round, error.code)
        finally:
            self._inbox.done(device)
        self._chronicle.accepted(entry, number)
        self._unconfirmed.append((device, offer))
        self._into = number
        return UpdateAccepted(device, offer.round)

    async def _confirm(self) -> None:
        """Receipts for what was accepted, once the disk has it for certain."""
        if self._unconfirmed:
            await asyncio.to_thread(self._directory.confirm, self._into)
            for device, offer in self._unconfirmed:
                self._inbox.receipt(device, offer)
            self._unconfirmed.clear()

    async def _write_down(self, told: Told) -> Event:
        device, report = told.device, told.report
        if not self._inbox.welcome(device, report, "personalize"):
            return Tick()
        await asyncio.to_thread(self._directory.add_report, device, report)
        self._chronicle.tell("reported", device=device, examples=report.examples, metrics=report.metrics)
        self._inbox.receipt(device, report)
        return Reported(device, report.round)

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _apply(self, event: Event) -> None:
        commands = self._engine.handle(event, self._clock())
        idle = self._idle()
        if commands or idle:
            await self._confirm()
        if not commands and idle and (len(self._engine.known) > self._known or isinstance(event, DeviceAsleep)):
            await self._save()  # so that a restart waits for them, too, and no longer for who sleeps
        news = [await self._execute(command) for command in commands]
        if commands or isinstance(event, Prepared):
            await self._save()
            for name, fields in news:
                self._chronicle.tell(name, **fields)
            await self._publish()
        if not isinstance(event, Tick | Prepared):
            if await self._orders.give([event.device]):
                await self._save()
                self._board.payloads(self._payloads.wanted())
            self._orders.order(event.device, again=isinstance(event, DeviceOnline))

    async def _save(self) -> None:
        """Before anything of it is public: what a checkpoint names is what a restart clears away."""
        snapshot = self._engine.snapshot()
        payloads = sorted({*self._board.published(), *self._payloads.wanted()}, key=lambda blob: blob.digest)
        asleep, self._known = self._fleet.asleep(time.time() - self._clock()), len(snapshot.known)
        await asyncio.to_thread(self._directory.save, Checkpoint(snapshot, self._line, tuple(payloads), asleep))

    async def _execute(self, command: Command) -> News:
        match command:
            case OpenRound(number, attempt, cohort):
                self._payloads.recut()
                if attempt == 1:
                    self._chronicle.opened()
                self._chronicle.asked(cohort)
                await self._orders.give(cohort)
                return "opened", {
                    "round": number,
                    "attempt": attempt,
                    "cohort": list(cohort),
                    "payload_bytes": self._payloads.largest,
                    "broker_bytes": self._payloads.total,
                    "deadline_s": self._config.rounds.deadline_s,
                }
            case AskDevices(number, devices):
                self._chronicle.asked(devices)
                await self._orders.give(devices)
                return "asked", {"round": number, "devices": list(devices)}
            case CloseRound(number, attempts):
                if not self._buffered or number == self._config.rounds.count:
                    self._inbox.desk = None
                await asyncio.to_thread(self._ledger.close, number)
                self._chronicle.exposed(number, self._ledger.exposed)
                await self._payloads.turn(number + 1, self._engine.starts())
                self._line = self._chronicle.closed(number, attempts, self._payloads.digest)
                self._chronicle.begin()
                return "closed", {key: value for key, value in self._line.items() if key != "event"}
            case AbandonRound(number, attempt, reason):
                return "abandoned", {"round": number, "attempt": attempt, "reason": reason}
            case OpenPersonalization(number):
                self._payloads.recut()
                self._chronicle.begin()
                await self._payloads.open_template()
                await self._orders.give(self._engine.known)
                return "personalizing", {
                    "round": number,
                    "payload_bytes": self._payloads.largest,
                    "broker_bytes": self._payloads.total,
                    "deadline_s": self._config.rounds.personalize_deadline_s,
                }
            case Finish(reported, failed, absent):
                reports = {device: report for device, report in self._directory.reports().items() if device in reported}
                self._line = self._chronicle.personalized(self._engine.round, reports, absent, self._payloads.digest)
                return "finished", {
                    "run": self._engine.run,
                    "reported": list(reported),
                    "failed": list(failed),
                    "absent": list(absent),
                    "evaluation": self._line["evaluation"],
                    "devices": self._fleet.summary(self._clock()),
                    "run_dir": str(self._directory.path),
                }

    # --- in public --------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Desk, payloads and every device's task, as they should be now."""
        engine = self._engine
        if engine.phase is Phase.FINISHED:
            return
        if engine.phase is Phase.GATHERING and engine.round > self._config.rounds.count:
            self._chronicle.tell("preparing", round=engine.round)
        if (engine.phase is Phase.PERSONALIZING or self._ledger.measures) and await self._payloads.open_template():
            await self._save()
        if engine.phase is not Phase.PERSONALIZING and engine.attempt and self._inbox.desk is None:
            folder = self._directory.incoming(None if self._buffered else engine.round)
            folder.mkdir(exist_ok=True)
            self._inbox.desk = UploadDesk(self._config.transfer, limit=self._ledger.limit, folder=folder)
        if engine.attempt or engine.phase is Phase.PERSONALIZING:
            self._board.payloads(self._payloads.wanted())
        for device in engine.known:
            self._orders.order(device)
