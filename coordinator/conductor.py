"""Carries out what the engine commands: on the disk first, then in public."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from coordinator.board import Board, Order
from coordinator.checkpoints import Checkpoint, RunDirectory
from coordinator.chronicle import Chronicle
from coordinator.engine import RoundEngine
from coordinator.events import (
    AbandonRound,
    CloseRound,
    Command,
    DeviceFailed,
    DeviceOnline,
    Event,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Reported,
    Tick,
    UpdateAccepted,
)
from coordinator.fleet import Fleet
from coordinator.inbox import Arrived, Inbox, Job, Told
from coordinator.journal import Line
from coordinator.preparation import Preparation
from coordinator.uploads import UploadDesk
from shared.chunks import describe
from shared.config import RunConfig
from shared.errors import RefusedUpdate
from shared.messages import Blob, Offer, Task

if TYPE_CHECKING:
    from coordinator.ledger import Ledger

News: TypeAlias = tuple[str, dict[str, Any]]
"""What the live view is told once it is on the disk."""


class Conductor:
    """Does one job after the other.

    chunk  bytes of a chunk that link and devices take now
    idle   whether no further job is waiting: then the disk is asked to confirm what was accepted, for all at once
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        engine: RoundEngine,
        directory: RunDirectory,
        ledger: "Ledger",
        fleet: Fleet,
        chronicle: Chronicle,
        board: Board,
        inbox: Inbox,
        preparation: Preparation,
        chunk: Callable[[], int],
        idle: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._engine = engine
        self._directory = directory
        self._ledger = ledger
        self._fleet = fleet
        self._chronicle = chronicle
        self._board = board
        self._inbox = inbox
        self._preparation = preparation
        self._chunk = chunk
        self._idle = idle
        self._clock = clock
        self._payload: Blob | None = None
        self._initial: Blob | None = None
        self._template: Blob | None = None
        self._published: tuple[Blob, ...] = ()
        self._line: Line | None = None
        self._unconfirmed: list[tuple[str, Offer]] = []
        self._known = 0

    async def resume(self, checkpoint: Checkpoint) -> None:
        """Continue where the checkpoint, and what lies beside it on the disk, says."""
        snapshot, number = checkpoint.engine, checkpoint.round
        self._line, self._published = checkpoint.line, checkpoint.payloads
        entries: dict[str, dict[str, Any]] = {}
        if snapshot.phase is Phase.PERSONALIZING:
            answered = [device for device, report in self._directory.reports().items() if report.round == number]
        else:
            entries = await asyncio.to_thread(self._ledger.accepted, number)
            answered = list(entries)
        self._engine.restore(snapshot, answered, self._clock())
        await self._describe_payload(number)
        if self._config.model.initial is not None:
            self._initial = await self._describe(self._directory.initial)
        if snapshot.phase is Phase.PERSONALIZING or snapshot.attempt:
            payload = await self._open_payload()
            self._chronicle.begin(payload.size)
            self._chronicle.resumed(snapshot.asked, entries)
            await self._publish()

    async def do(self, job: Job) -> None:
        """OSError where the disk refuses, StateError where it lost something: the run cannot go on then."""
        match job:
            case Arrived():
                await self._apply(await self._admit(job))
            case Told():
                await self._apply(await self._write_down(job))
            case _:
                await self._apply(job)

    # --- work -------------------------------------------------------------------------------------------------------

    async def _admit(self, arrived: Arrived) -> Event:
        device, offer = arrived.device, arrived.offer
        try:
            if not self._inbox.welcome(device, offer, "train"):
                return Tick()
            capabilities = self._fleet[device].capabilities
            examples = capabilities.examples if capabilities else 0
            entry = await asyncio.to_thread(self._ledger.take, device, offer.round, arrived.path, examples)
        except RefusedUpdate as error:
            self._inbox.refuse(device, offer, error.code, str(error))
            return DeviceFailed(device, offer.round, error.code)
        finally:
            self._inbox.done(device)
        self._chronicle.accepted(entry, offer.round)
        self._unconfirmed.append((device, offer))
        return UpdateAccepted(device, offer.round)

    async def _confirm(self) -> None:
        """Receipts for what was accepted, once the disk has it for certain."""
        if self._unconfirmed:
            await asyncio.to_thread(self._directory.confirm, self._unconfirmed[0][1].round)
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
        if not commands and idle and len(self._engine.known) > self._known:
            await self._save()  # so that a restart waits for them, too
        news = [await self._execute(command) for command in commands]
        if commands:
            await self._save()
            for name, fields in news:
                self._chronicle.tell(name, **fields)
            await self._publish()
        if not isinstance(event, Tick):
            self._order(event.device, again=isinstance(event, DeviceOnline))

    async def _save(self) -> None:
        snapshot = self._engine.snapshot()
        checkpoint, self._known = Checkpoint(snapshot, self._line, self._published), len(snapshot.known)
        await asyncio.to_thread(self._directory.save, checkpoint)

    async def _execute(self, command: Command) -> News:
        match command:
            case OpenRound(number, attempt, cohort):
                payload = await self._open_payload()
                if attempt == 1:
                    self._chronicle.begin(payload.size)
                self._chronicle.asked(cohort)
                return "opened", {
                    "round": number,
                    "attempt": attempt,
                    "cohort": list(cohort),
                    "payload_bytes": payload.size,
                    "deadline_s": self._config.rounds.deadline_s,
                }
            case CloseRound(number, attempts):
                self._inbox.desk = None
                await asyncio.to_thread(self._ledger.close, number)
                payload = await self._describe_payload(number + 1)
                self._line = self._chronicle.closed(number, attempts, payload.digest)
                return "closed", {key: value for key, value in self._line.items() if key != "event"}
            case AbandonRound(number, attempt, reason):
                return "abandoned", {"round": number, "attempt": attempt, "reason": reason}
            case OpenPersonalization(number):
                payload = await self._open_payload()
                self._chronicle.begin(payload.size)
                return "personalizing", {
                    "round": number,
                    "payload_bytes": payload.size,
                    "deadline_s": self._config.rounds.personalize_deadline_s,
                }
            case Finish(reported, failed, absent):
                assert self._payload is not None
                reports = {device: report for device, report in self._directory.reports().items() if device in reported}
                self._line = self._chronicle.personalized(self._engine.round, reports, absent, self._payload.digest)
                return "finished", {
                    "run": self._engine.run,
                    "reported": list(reported),
                    "failed": list(failed),
                    "absent": list(absent),
                    "evaluation": self._line["evaluation"],
                    "devices": self._fleet.summary(self._clock()),
                    "run_dir": str(self._directory.path),
                }

    async def _describe_payload(self, number: int) -> Blob:
        """Know what round `number` is sent."""
        self._payload = await self._describe(self._ledger.download(number))
        return self._payload

    async def _open_payload(self) -> Blob:
        """Have everything that devices start from cut so that everybody takes it."""
        assert self._payload is not None
        self._payload = self._cut(self._payload)
        if self._initial is not None:
            self._initial = self._cut(self._initial)
        return self._payload

    async def _open_template(self) -> None:
        path = await self._preparation.template()
        if path is not None:
            self._template = self._cut(await self._describe(path))
            await self._save()

    async def _describe(self, path: Path) -> Blob:
        """In chunks of the size that it was published with, if it was."""
        blob = await asyncio.to_thread(describe, path, self._chunk())
        return next((known for known in self._published if known.digest == blob.digest), blob)

    def _cut(self, blob: Blob) -> Blob:
        """The blob in chunks that everybody takes. It may be with the broker from now on, beside its predecessors that
        are not cleared away yet."""
        chunk = min(self._chunk(), blob.chunk) if blob in self._published else self._chunk()
        cut = blob.model_copy(update={"chunk": chunk})
        self._published = (*(known for known in self._published if known != cut), cut)[-4:]
        return cut

    # --- in public --------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Desk, payloads and every device's task, as they should be now."""
        engine = self._engine
        if engine.phase is Phase.FINISHED:
            return
        if engine.phase is Phase.PERSONALIZING and self._template is None:
            await self._open_template()
        if engine.phase is not Phase.PERSONALIZING and engine.attempt and self._inbox.desk is None:
            folder = self._directory.incoming(engine.round)
            self._inbox.desk = UploadDesk(self._config.transfer, limit=self._ledger.limit, folder=folder)
        if self._payload is not None and (engine.attempt or engine.phase is Phase.PERSONALIZING):
            wanted: dict[Blob, Path] = {self._payload: self._ledger.download(engine.round)}
            if self._initial:
                wanted[self._initial] = self._directory.initial
            if self._template:
                wanted[self._template] = self._directory.template
            self._board.payloads(wanted)
        for device in engine.known:
            self._order(device)

    def _order(self, device: str, *, again: bool = False) -> None:
        """What this device should do. Stragglers keep their order while no attempt is open."""
        action, deadline = self._engine.wanted(device), self._engine.deadline
        if action is None or self._payload is None:
            self._board.order(device, None, again=again)
        elif deadline is not None or again:
            task = Task(
                run=self._engine.run,
                action=action,
                round=self._engine.round,
                plan=self._ledger.plan,
                payload=self._payload,
                initial=self._initial,
                template=self._template if action == "personalize" else None,
                time_left_s=0,
            )
            in_full = self._clock() + self._config.rounds.deadline_s
            self._board.order(device, Order(task, in_full if deadline is None else deadline), again=again)
