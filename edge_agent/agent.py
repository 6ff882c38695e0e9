"""One device: the shell around the session. It receives, asks the session, and does what the session says.

Nothing here imports torch: the trainer is a process of its own (edge_agent.trainer).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from importlib import metadata

from edge_agent import health
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
from edge_agent.metered import Metered
from edge_agent.session import Phase, Session
from edge_agent.store import Store
from edge_agent.trainer import Trainer
from edge_agent.trainer import Work as DoJob
from edge_agent.upload import Upload
from edge_agent.workbench import Workbench
from shared.codec import encode_message
from shared.config import AgentConfig
from shared.encoding import LIKED
from shared.errors import LinkError, MalformedMessage, PacketTooLarge
from shared.link import Connected, Disconnected, OpenLink, Received, Will
from shared.messages import Capabilities, Chunk, Message, Presence, Receipt, Report
from shared.profiles import load_profile
from shared.topics import Topics

log = logging.getLogger(__name__)

GOODBYE_S = 3.0
"""Time to tell the coordinator that we leave."""


class Agent:
    """One device, from its start to its stop. Opens the state folder at once: StateError if another agent has it.

    open_link  the way to the broker
    work       does the tasks; without it, a Trainer of this agent's own
    once       stop when the report of a personalization has its receipt
    look       reads the machine's health
    """

    def __init__(
        self,
        config: AgentConfig,
        open_link: OpenLink,
        work: DoJob | None = None,
        *,
        once: bool = False,
        look: Callable[[], health.Reading] = health.read,
    ) -> None:
        self._config = config
        self._profile = load_profile(config.profile)
        self._topics = Topics(config.fleet)
        self._store = Store(config.state_dir)
        self._once = once
        self._look = look
        will = Will(self._topics.presence(config.device), encode_message(self._presence(online=False)))
        self._link = Metered(open_link(f"{config.fleet}-{config.device}", will))
        self._counted = (0, 0)
        self._trainer = Trainer(keep_warm=self._profile.training.keep_warm) if work is None else None
        do = work or self._trainer
        assert do is not None
        self._bench = Workbench(config, self._profile, self._store, self._link, do, self._count, self._tell)
        self._upload = Upload(self._link, self._topics.up(config.device), self._store)
        self._session = Session(self._store.done, self._store.answer)
        self._ears = Ears(config.coordinator_key, config.state_dir)
        self.refused = self._ears.refused
        self._outbox: asyncio.Queue[tuple[str, bytes, bool]] = asyncio.Queue()
        self._first_contact = asyncio.Event()
        self._subscribed = False
        self._deadlines: dict[Key, float] = {}
        self._run = self._store.done.run if self._store.done else ""
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`. LinkError where the broker will never take us (credentials, certificate)."""
        self._check_health()
        log.info("device %s, profile %s, start %d", self._config.device, self._profile.id, self._store.epoch)
        loops = [
            asyncio.create_task(loop())
            for loop in (self._serve, self._receive, self._speak, self._watch_health, self._watch_stalls)
        ]
        try:
            await self._link.open()
            if self._trainer and self._profile.training.enabled:
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
                topic = self._topics.presence(self._config.device)
                await self._link.publish(topic, encode_message(self._presence(online=False)), retain=True)
        await self._link.close()
        await self._bench.close()
        if self._trainer:
            await self._trainer.close()
        self._count(self._run)
        self._store.close()

    async def _serve(self) -> None:
        """Make ourselves reachable, then wait for `stop`."""
        device = self._config.device
        await self._first_contact.wait()
        await self._link.subscribe(self._topics.coordinator, self._topics.task(device), self._topics.down(device))
        self._subscribed = True
        self._tell(LinkUp())
        await self._stopping.wait()

    # --- what comes in ---

    async def _receive(self) -> None:
        while True:
            match await self._link.receive():
                case Connected():
                    self._first_contact.set()
                    if self._subscribed:  # the link has restored them
                        self._tell(LinkUp())
                case Disconnected(reason):
                    log.info("the broker is lost: %s", reason)
                    self._tell(LinkDown())
                case Received(topic, payload):
                    try:
                        self._received(topic, payload)
                    except MalformedMessage as error:
                        self._ears.refuse(topic, error)

    def _received(self, topic: str, payload: bytes) -> None:
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
                    log.warning("round %d was refused: %s %s", message.round, message.code, message.reason)
                self._tell(message)
        else:
            self._bench.take_chunk(*self._topics.chunk_index(topic), payload)

    def _asked(self, payload: bytes) -> None:
        if not payload:
            self._tell(TaskCleared())
            return
        task = self._ears.task(self._topics.task(self._config.device), payload)
        self._deadlines[Key.of(task)] = time.monotonic() + task.time_left_s
        self._run = task.run
        self._check_health()
        self._tell(task)

    # --- what the session says ---

    def _tell(self, event: Event) -> None:
        for action in self._session.handle(event):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Announce():
                self._say(self._topics.presence(self._config.device), self._presence(online=True), retain=True)
            case Fetch(task):
                log.info("run %s, round %d: %s, %d bytes", task.run, task.round, task.action, task.payload.size)
                self._bench.fetch(task)
            case Work(task):
                self._count(task.run)
                deadline = self._deadlines[Key.of(task)]
                self._deadlines = {Key.of(task): deadline}
                self._bench.work(task, deadline)
            case Cancel(reason):
                log.info("cancelled: %s", reason)
                self._bench.cancel()
            case Say(answer):
                if answer.kind == "failure":
                    log.warning("round %d failed: %s %s", answer.round, answer.code, answer.reason)
                self._say(self._topics.up(self._config.device), answer)
            case Send(blob, ranges):
                self._upload.send(blob, ranges)
            case Forget(answer, accepted):
                self._upload.stop()
                self._store.forget(accepted=accepted)
                self._count(answer.run)
                if self._once and isinstance(answer, Report):
                    self.stop()

    def _say(self, topic: str, message: Message, *, retain: bool = False) -> None:
        self._outbox.put_nowait((topic, encode_message(message), retain))

    async def _speak(self) -> None:
        while True:
            topic, payload, retain = await self._outbox.get()
            try:
                await self._link.publish(topic, payload, retain=retain)
            except PacketTooLarge as error:
                log.error("not sent: %s", error)

    def _presence(self, *, online: bool) -> Presence:
        if not online:
            return Presence(online=False, epoch=self._store.epoch)
        return Presence(
            online=True,
            epoch=self._store.epoch,
            capabilities=Capabilities(
                profile=self._profile.id,
                train=self._session.healthy,
                reason=self._session.reason,
                examples=self._store.examples,
                memory_mib=self._profile.training.memory_mib,
                max_packet=min(self._link.max_packet, self._profile.link.max_packet),
                encodings=tuple(LIKED[self._profile.link.kind]),
                version=metadata.version("talaria"),
            ),
        )

    # --- what time brings ---

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(health.POLL_S)
            self._check_health()

    def _check_health(self) -> None:
        session = self._session
        working = session.phase is Phase.WORKING
        reading = self._look() if self._config.health else health.Reading()
        verdict = health.judge(reading, self._profile, was_ok=session.healthy, working=working)
        if verdict.ok != session.healthy:  # not for every degree that it is hotter
            log.warning("training is %s", "possible again" if verdict.ok else f"refused: {verdict.reason}")
            self._tell(HealthChanged(verdict.ok, verdict.reason))

    async def _watch_stalls(self) -> None:
        """An answer is said again when nothing has moved on the link, either way, for `stall_s`."""
        while True:
            before = (self._link.up, self._link.down)
            await asyncio.sleep(self._config.stall_s)
            if self._session.phase is Phase.ANSWERING and (self._link.up, self._link.down) == before:
                self._tell(Stalled())

    def _count(self, run: str) -> dict[str, float]:
        """Bytes on the link during this run, before earlier restarts as well."""
        up, down = self._counted
        self._counted = (self._link.up, self._link.down)
        traffic = self._store.count(run, up=self._link.up - up, down=self._link.down - down)
        return {"bytes_up": float(traffic.up), "bytes_down": float(traffic.down)}
