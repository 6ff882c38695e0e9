"""The coordinator: the shell around the round engine. It owns the link and the run's folder; the engine decides.

What happens is told to `on_event` as dicts, one line each with `talaria-coordinator run --json`; "event" is one of

started        run, round, phase, run_dir, model, algorithm, rounds
connected      session_present, max_packet
disconnected   reason
device         device, online, asleep_s (so long from now on), profile, unfit (why it is not asked, or empty)
opened         round, attempt, cohort, payload_bytes (of the largest download), broker_bytes (of all that the broker
               keeps now), deadline_s
asked          round, devices (that begin while others are at work: `buffered` rounds)
accepted       round, device, start, staleness, examples, weight, bytes, encoding, kept, metrics
rejected       device, code, reason (once per device, code and round)
failed         device, round, code, reason
abandoned      round, attempt, reason
closed         the journal's line of the round (coordinator.journal): round, attempts, cohort, accepted, evaluation, ...
preparing      round (all are closed, and the ONNX template is still being made)
personalizing  round, payload_bytes, broker_bytes, deadline_s
reported       device, examples, metrics
quarantined    device, since, code, reason, count (coordinator.quarantine.Entry); once more after every start
released       device
warning        text
finished       run, reported, failed, absent, evaluation, run_dir, devices (coordinator.fleet.Fleet.summary)
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.board import Board
from coordinator.buffered import BufferedEngine
from coordinator.checkpoints import Checkpoint, RunDirectory
from coordinator.chronicle import Chronicle, OnEvent
from coordinator.cohort import Needs
from coordinator.conductor import Conductor
from coordinator.engine import RoundEngine
from coordinator.events import Action, Phase, Prepared, Tick
from coordinator.fleet import Fleet
from coordinator.inbox import Inbox, Job
from coordinator.observatory import Observatory
from coordinator.opening import load_run, open_run
from coordinator.payloads import Payloads
from coordinator.preparation import InChild, Preparation
from coordinator.quarantine import LOOK_S, Quarantine
from coordinator.survey import survey
from coordinator.voice import Voice
from shared.config import RunConfig
from shared.errors import LinkError
from shared.link import Connected, Disconnected, OpenLink, Received, Will
from shared.messages import PAGE, CoordinatorState, Downlink, Want
from shared.topics import Topics
from shared.transfer import chunk_size, indices, published_size, ranges_of, send_chunks

if TYPE_CHECKING:
    from coordinator.ledger import Ledger

GOODBYE_S = 1.0
"""How long a broker that does not answer may hold up the end."""


class Coordinator:
    """One run, from its first round, or from where an earlier coordinator stopped, to its end.

    run_dir   the run's folder (coordinator.checkpoints); made if it is not there
    on_event  told what happens, as it happens
    prepare   how the run is prepared: in a child process, or (simulations) in this one
    """

    def __init__(
        self,
        config: RunConfig,
        open_link: OpenLink,
        *,
        run_dir: Path,
        on_event: OnEvent,
        prepare: Callable[[Callable[[str], None]], Preparation] = InChild,
    ) -> None:
        self._config = config
        self._open_link = open_link
        self._directory = RunDirectory(run_dir, keep=config.run.keep_updates)
        self._voice = Voice(config.run.signing_key)
        self._topics = Topics(config.run.fleet)
        self._fleet = Fleet()
        self._clock = time.monotonic
        self._observatory = Observatory(config.run.http, run_dir)
        self._on_event = on_event
        self._chronicle = Chronicle(self._tell, self._fleet, self._clock)
        self._quarantine = Quarantine(run_dir, config.admission.quarantine_after, self._chronicle)
        self._preparation = prepare(lambda text: self._chronicle.tell("warning", text=text))
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._answers: set[asyncio.Task[None]] = set()
        self._supplies: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Return when the run is finished; a finished run finishes again at once.

        ConfigError, ModelError or StateError before anything is sent; LinkError where the broker cannot be used.
        """
        with self._directory.locked():
            try:
                async with self._observatory:
                    await self._run()
            finally:
                await self._preparation.stop()

    async def _run(self) -> None:
        record = await open_run(self._config, self._directory, self._preparation)
        checkpoint, ledger = await asyncio.to_thread(load_run, self._directory, self._config.admission)
        self._tell_start(record.run, checkpoint)
        if checkpoint.engine.phase is not Phase.FINISHED:
            await self._connect(record.run, checkpoint, ledger)

    async def _connect(self, run: str, checkpoint: Checkpoint, ledger: "Ledger") -> None:
        config = self._config
        needs = Needs.of(ledger.limit, prunes=ledger.prunes)
        engine = BufferedEngine if config.rounds.mode == "buffered" else RoundEngine
        template: Action = "train" if ledger.measures else "personalize"
        self._engine = engine(run, config.rounds, seed=config.run.seed, needs=needs, template=template)
        self._state = CoordinatorState(online=True, epoch=self._directory.count_start(), run=run)
        will = Will(self._topics.coordinator, self._voice(self._topics.coordinator, self._gone))
        self._link = self._open_link(f"{config.run.fleet}-coordinator", will)
        await self._link.open()
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._serve(checkpoint, ledger)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            with contextlib.suppress(LinkError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._link.publish(will.topic, will.payload, retain=True)
            await self._link.close()

    async def _serve(self, checkpoint: Checkpoint, ledger: "Ledger") -> None:
        board = Board(self._link, self._topics, self._clock, checkpoint.payloads, self._voice)
        self._inbox = inbox = Inbox(
            topics=self._topics,
            engine=self._engine,
            fleet=self._fleet,
            chronicle=self._chronicle,
            answer=self._answer,
            supply=lambda device, want: self._supply(board, device, want),
            spawn=self._group.create_task,
            jobs=self._jobs,
            clock=self._clock,
        )
        payloads = Payloads(self._directory, ledger, chunk=self._chunk, published=board.published)
        conductor = Conductor(
            config=self._config,
            engine=self._engine,
            directory=self._directory,
            ledger=ledger,
            fleet=self._fleet,
            chronicle=self._chronicle,
            board=board,
            inbox=inbox,
            payloads=payloads,
            topics=self._topics,
            quarantine=self._quarantine,
            idle=self._jobs.empty,
            clock=self._clock,
        )
        self._observatory.look = lambda: survey(
            self._engine, self._fleet, inbox.desk, board, jobs=self._jobs.qsize(), now=self._clock(), wall=time.time()
        )
        await self._connected()
        self._fleet.recall(checkpoint.asleep, time.time() - self._clock())
        await conductor.resume(checkpoint)
        board.state(self._state)
        background = [
            self._group.create_task(job)
            for job in (
                board.run(),
                self._listen(board),
                self._mind_stalls(),
                self._mind_quarantine(),
                self._await_template(),
            )
        ]
        try:
            await self._link.subscribe(self._topics.all_presence, self._topics.all_vitals, self._topics.all_up)
            while self._engine.phase is not Phase.FINISHED:
                await conductor.do(await self._next_job())
            board.withdraw(self._engine.known)
            await board.settled()
            await asyncio.gather(*self._answers)
        finally:
            for task in [*background, *self._supplies.values()]:
                task.cancel()

    @property
    def _gone(self) -> CoordinatorState:
        return self._state.model_copy(update={"online": False})

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _connected(self) -> None:
        """Only with a connection it is known how large packets may be; nothing that devices say comes before it."""
        while not isinstance(event := await self._link.receive(), Connected):
            self._tell_link(event)
        self._tell_link(event)

    async def _listen(self, board: Board) -> None:
        while True:
            match await self._link.receive():
                case Received() as received:
                    self._inbox.receive(received)
                    await asyncio.sleep(0)  # what was decided is sent before the next message, however many wait
                case event:
                    self._tell_link(event)
                    if isinstance(event, Connected):
                        board.connected(forgotten=not event.session_present)

    async def _next_job(self) -> Job:
        """What comes next: a job, or the engine's deadline."""
        try:
            async with asyncio.timeout_at(self._engine.next_deadline(self._clock())):
                return await self._jobs.get()
        except TimeoutError:
            return Tick()

    async def _mind_stalls(self) -> None:
        """Tell the desk of the time whenever something may have stalled."""
        while True:
            due = self._inbox.desk.next_deadline() if self._inbox.desk else None
            await asyncio.sleep(self._config.transfer.stall_s if due is None else max(0.0, due - self._clock()))
            self._inbox.stalled()

    async def _mind_quarantine(self) -> None:
        """Have the folder looked at soon after somebody changed it."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._quarantine.changed():
                self._jobs.put_nowait(Tick())

    async def _await_template(self) -> None:
        await self._preparation.template()
        self._jobs.put_nowait(Prepared())

    # --- out ----------------------------------------------------------------------------------------------------------

    def _answer(self, device: str, message: Downlink) -> None:
        topic = self._topics.down(device)
        task = self._group.create_task(self._link.publish(topic, self._voice(topic, message)))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _supply(self, board: Board, device: str, want: Want) -> None:
        """Send a device what the broker does not keep for it: two pages at most, and one request at a time."""
        found = board.lookup(want.digest)
        if want.run != self._engine.run or found is None or device in self._supplies:
            return
        blob, path = found
        chosen = indices(want.ranges, blob.chunks)[: 2 * PAGE]
        self._chronicle.sent(device, published_size(self._topics, blob, chosen))
        sending = send_chunks(self._link, self._topics.down(device), path, blob, ranges_of(chosen))
        self._supplies[device] = self._group.create_task(sending)
        self._supplies[device].add_done_callback(lambda _: self._supplies.pop(device, None))

    def _chunk(self) -> int:
        """Bytes of a chunk that the broker takes now, and every device that can be asked, now or when it is back."""
        able = [twin.capabilities for twin in self._fleet if not self._engine.unfit(twin.capabilities)]
        return chunk_size(min([self._link.max_packet, *(each.max_packet for each in able if each)]))

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, event: dict[str, Any]) -> None:
        self._observatory.note(event)
        self._on_event(event)

    def _tell_start(self, run: str, checkpoint: Checkpoint) -> None:
        self._chronicle.tell(
            "started",
            run=run,
            round=checkpoint.round,
            phase=str(checkpoint.engine.phase),
            run_dir=str(self._directory.path),
            model=self._config.model.name,
            algorithm=self._config.algorithm.name,
            rounds=self._config.rounds.count,
        )

    def _tell_link(self, event: Connected | Disconnected | Received) -> None:
        match event:
            case Connected(session_present, max_packet):
                self._chronicle.tell("connected", session_present=session_present, max_packet=max_packet)
            case Disconnected(reason):
                self._chronicle.tell("disconnected", reason=reason)
