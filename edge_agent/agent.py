"""One device: the shell around the session. It receives, asks the session, and does what the session says.

Nothing here imports torch: the trainer is a process of its own (edge_agent.trainer).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from edge_agent import health, rest
from edge_agent.budget import Budget
from edge_agent.ears import Ears
from edge_agent.events import (
    Action,
    Announce,
    Cancel,
    Event,
    Fetch,
    Forget,
    HealthChanged,
    Key,
    LinkDown,
    LinkUp,
    Say,
    Send,
    Stalled,
    TaskCleared,
    Work,
)
from edge_agent.gate import Gate
from edge_agent.metered import Metered, Traffic
from edge_agent.session import Phase, Session
from edge_agent.store import Store
from edge_agent.trainer import Trainer
from edge_agent.trainer import Work as DoJob
from edge_agent.upload import Upload
from edge_agent.voice import Voice
from edge_agent.workbench import Workbench
from shared.codec import encode_message
from shared.config import AgentConfig
from shared.errors import LinkError, MalformedMessage
from shared.link import Connected, Disconnected, OpenLink, Received, Will
from shared.messages import Chunk, Offer, Presence, Receipt, Report
from shared.profiles import load_profile
from shared.topics import Topics

log = logging.getLogger(__name__)

GOODBYE_S = 3.0
"""Time to tell the coordinator that we leave."""


class Agent:
    """One device, from its start to its stop. Opens the state folder at once: StateError if another agent has it.

    open_link   the way to the broker
    work        does the tasks; without it, a Trainer of this agent's own
    once        stop when the report of a personalization has its receipt
    until_idle  stop when there is nothing to do; so does a device with `wakes_every_s`
    look        reads the machine's health
    """

    def __init__(
        self,
        config: AgentConfig,
        open_link: OpenLink,
        work: DoJob | None = None,
        *,
        once: bool = False,
        until_idle: bool = False,
        look: Callable[[], health.Reading] = health.read,
    ) -> None:
        self._config = config
        self._profile = load_profile(config.profile)
        self._topics = Topics(config.fleet)
        self._store = Store(config.state_dir)
        self._once = once
        self._lies_down = until_idle or config.wakes_every_s is not None
        self.asleep_s: float | None = None
        """Seconds until it means to be back, where it lay down by itself and `wakes_every_s` is known."""
        self._began = self._moved = time.monotonic()
        daily = self._profile.link.daily_mib
        self._budget = Budget(config.state_dir / "budget", daily) if daily is not None else None
        self._gate = Gate(self._profile, look, self._budget, heeds=config.health)
        will = Will(
            self._topics.presence(config.device), encode_message(Presence(online=False, epoch=self._store.epoch))
        )
        link = open_link(f"{config.fleet}-{config.device}", will)
        self._link = Metered(link, self._budget.spend) if self._budget else Metered(link)
        self._traffic = Traffic(self._link, self._store)
        self._trainer = Trainer(keep_warm=self._profile.training.keep_warm) if work is None else None
        do = work or self._trainer
        assert do is not None
        self._bench = Workbench(config, self._profile, self._store, self._link, do, self._traffic.settle, self._tell)
        self._upload = Upload(self._link, self._topics.up(config.device), self._store)
        self._session = Session(self._store.done, self._store.answer)
        self._ears = Ears(config.coordinator_key, config.state_dir)
        self.refused = self._ears.refused
        about = (self._store, self._session, self._link, self._traffic, self._gate)
        self._voice = Voice(config, self._profile, *about)
        self.facts = self._voice.facts
        self._first_contact = asyncio.Event()
        self._subscribed = False
        self._deadlines: dict[Key, float] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`. LinkError where the broker will never take us (credentials, certificate)."""
        self._check_health()
        log.info("device %s, profile %s, start %d", self._config.device, self._profile.id, self._store.epoch)
        loops = [
            asyncio.create_task(loop())
            for loop in (
                self._stopping.wait,  # also before the broker was ever there
                self._serve,
                self._receive,
                self._voice.speak,
                self._voice.show_vitals,
                self._watch_health,
                self._watch_stalls,
                *([self._watch_rest] if self._lies_down else []),
            )
        ]
        try:
            await self._link.open()
            if self._trainer and self._profile.training.enabled and not self._lies_down:  # it mostly wakes for nothing
                await self._trainer.warm()
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._close()

    def stop(self) -> None:
        """Let `run` end: work is cancelled, what is on the disk stays, the coordinator is told. Bounded."""
        self._stopping.set()

    async def _close(self) -> None:
        self._upload.stop()
        self._bench.cancel()
        with contextlib.suppress(TimeoutError, LinkError):
            async with asyncio.timeout(GOODBYE_S):
                await self._voice.goodbye(self.asleep_s)
        await self._link.close()
        await self._bench.close()
        if self._trainer:
            await self._trainer.close()
        self._traffic.settle(self._traffic.run)
        if self._budget:
            self._budget.save()
        self._store.close()

    async def _serve(self) -> None:
        """Make ourselves reachable, then wait for `stop`."""
        device = self._config.device
        await self._first_contact.wait()
        await self._link.subscribe(self._topics.coordinator, self._topics.task(device), self._topics.down(device))
        self._subscribed = True
        self._up()
        await self._stopping.wait()

    # --- what comes in ---

    async def _receive(self) -> None:
        while True:
            match await self._link.receive():
                case Connected():
                    self._first_contact.set()
                    if self._subscribed:  # the link has restored them
                        self._up()
                case Disconnected(reason):
                    log.info("the broker is lost: %s", reason)
                    self._voice.linked.clear()
                    self._tell(LinkDown())
                case Received(topic, payload):
                    try:
                        self._received(topic, payload)
                    except MalformedMessage as error:
                        self._ears.refuse(topic, error)

    def _up(self) -> None:
        self._moved = time.monotonic()
        self._voice.linked.set()
        self._tell(LinkUp())

    def _received(self, topic: str, payload: bytes) -> None:
        self._moved = time.monotonic()
        device = self._config.device
        if topic == self._topics.coordinator:
            if payload:
                self._tell(self._ears.coordinator(topic, payload))
        elif topic == self._topics.task(device):
            self._asked(payload)
        elif topic == self._topics.down(device):
            message = self._ears.downlink(topic, payload)
            if isinstance(message, Chunk):
                self._bench.take_chunk(message.digest, message.index, message.data)
            else:
                if isinstance(message, Receipt) and not message.accepted:
                    known = {"run": message.run, "round": message.round}
                    log.warning("round %d was refused: %s %s", message.round, message.code, message.reason, extra=known)
                self._tell(message)
        else:
            self._bench.take_chunk(*self._topics.chunk_index(topic), payload)

    def _asked(self, payload: bytes) -> None:
        if not payload:
            self._tell(TaskCleared())
            return
        task = self._ears.task(self._topics.task(self._config.device), payload)
        self._deadlines[Key.of(task)] = time.monotonic() + task.time_left_s
        self._traffic.run = task.run
        self._check_health()
        self._tell(task)

    # --- what the session says ---

    def _tell(self, event: Event) -> None:
        before = self._session.phase
        actions = self._session.handle(event)
        if self._session.phase is not before:  # what was done for an hour has only now something to wait for
            self._moved = time.monotonic()
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Announce():
                self._voice.announce()
            case Fetch(task):
                known = {"run": task.run, "round": task.round}
                size = task.payload.size
                log.info("run %s, round %d: %s, %d bytes", task.run, task.round, task.action, size, extra=known)
                verdict = self._gate.afford(self._bench.lacking(task))
                if verdict.ok:
                    self._bench.fetch(task)
                else:
                    self._judged(verdict)
            case Work(task):
                self._traffic.settle(task.run)
                deadline = self._deadlines[Key.of(task)]
                self._deadlines = {Key.of(task): deadline}
                self._bench.work(task, deadline)
            case Cancel(reason):
                log.info("cancelled: %s", reason)
                self._bench.cancel()
            case Say(answer):
                self._voice.answer(answer)
            case Send(blob, ranges):
                self._upload.send(blob, ranges)
            case Forget(answer, accepted):
                self._upload.stop(taken=answer.run if accepted and isinstance(answer, Offer) else None)
                self._store.forget(accepted=accepted)
                self._traffic.settle(answer.run)
                self._voice.rounds_done += accepted and isinstance(answer, Offer)
                if self._once and isinstance(answer, Report):
                    self.stop()

    # --- what time brings ---

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(health.POLL_S)
            self._check_health()

    def _check_health(self) -> None:
        phase = self._session.phase
        busy = phase in (Phase.FETCHING, Phase.WORKING)
        verdict = self._gate.check(busy=busy, working=phase is Phase.WORKING)
        if verdict.ok != self._session.healthy:  # not for every degree that it is hotter
            self._judged(verdict)

    def _judged(self, verdict: health.Verdict) -> None:
        log.warning("training is %s", "possible again" if verdict.ok else f"refused: {verdict.reason}")
        self._tell(HealthChanged(verdict.ok, verdict.reason, verdict.code))

    async def _watch_rest(self) -> None:
        """Lie down when nothing has come in for long enough. What we say ourselves is no sign of anybody."""
        stall_s, every_s = self._config.stall_s, self._config.wakes_every_s
        while True:
            patience_s = rest.patience_s(self._session.phase, linked=self._voice.linked.is_set(), stall_s=stall_s)
            left = stall_s if patience_s is None else self._moved + patience_s - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(min(left, stall_s))  # what it waits for may change meanwhile
        self.asleep_s = None if every_s is None else rest.sleep_s(every_s, time.monotonic() - self._began)

    async def _watch_stalls(self) -> None:
        """An answer is said again when nothing has moved on the link, either way, for `stall_s`."""
        while True:
            before = (self._link.up, self._link.down)
            await asyncio.sleep(self._config.stall_s)
            if self._session.phase is Phase.ANSWERING and (self._link.up, self._link.down) == before:
                self._tell(Stalled())
