"""What the agent says, in order: answers, its presence, and from time to time its vital signs."""

import asyncio
import logging
import os
import time
from importlib import metadata
from typing import Any

from edge_agent.events import Answer
from edge_agent.gate import Gate
from edge_agent.metered import Metered, Traffic
from edge_agent.session import Session
from edge_agent.store import Store
from edge_agent.vitals import capabilities, vitals
from shared.codec import encode_message
from shared.config import AgentConfig
from shared.errors import PacketTooLarge
from shared.messages import Failure, Presence
from shared.profiles import Profile
from shared.topics import Topics

log = logging.getLogger(__name__)


class Voice:
    """Speaks as one device. `speak` and `show_vitals` run until they are cancelled.

    linked  set by the owner while the broker is reached
    """

    def __init__(
        self,
        config: AgentConfig,
        profile: Profile,
        store: Store,
        session: Session,
        link: Metered,
        traffic: Traffic,
        gate: Gate,
    ) -> None:
        self._device, self._vitals_s, self._profile = config.device, config.vitals_s, profile
        self._store, self._session = store, session
        self._link, self._traffic, self._gate = link, traffic, gate
        self._topics = Topics(config.fleet)
        self._outbox: asyncio.Queue[tuple[str, bytes, bool]] = asyncio.Queue()
        self._began = time.monotonic()
        self._failure: Failure | None = None
        self._failures = 0
        self.rounds_done = 0
        """Updates with a receipt since the start."""
        self.linked = asyncio.Event()

    def announce(self) -> None:
        """Say that we are here, and what we can do."""
        able = capabilities(
            self._profile, self._session, examples=self._store.examples, max_packet=self._link.max_packet
        )
        presence = Presence(online=True, epoch=self._store.epoch, capabilities=able)
        self._outbox.put_nowait((self._topics.presence(self._device), encode_message(presence), True))

    def answer(self, answer: Answer) -> None:
        """Say it (again)."""
        if isinstance(answer, Failure) and answer is not self._failure:
            log.warning("round %d failed: %s %s", answer.round, answer.code, answer.reason)
            self._failure = answer
            self._failures += 1
        self._outbox.put_nowait((self._topics.up(self._device), encode_message(answer), False))

    async def goodbye(self, asleep_s: float | None) -> None:
        """Say that we leave, before anything else that is still to be said; asleep_s: and when we mean to be back."""
        presence = Presence(online=False, epoch=self._store.epoch, asleep_s=asleep_s)
        await self._link.publish(self._topics.presence(self._device), encode_message(presence), retain=True)

    async def speak(self) -> None:
        while True:
            topic, payload, retain = await self._outbox.get()
            try:
                await self._link.publish(topic, payload, retain=retain)
            except PacketTooLarge as error:
                log.error("not sent: %s", error)

    def facts(self) -> dict[str, Any]:
        """What this device does now, for whoever looks after it on the same machine."""
        session = self._session
        return {
            "device": self._device,
            "version": metadata.version("talaria"),
            "pid": os.getpid(),
            "phase": session.phase.value,
            "connected": self.linked.is_set(),
            "healthy": session.healthy,
            "reason": session.reason,
        }

    async def show_vitals(self) -> None:
        """One publication at a time, and none while the broker is away: the latest is all that anybody wants."""
        while True:
            await self.linked.wait()
            shown = vitals(
                self._session,
                self._gate.reading,
                epoch=self._store.epoch,
                uptime_s=time.monotonic() - self._began,
                counts={
                    "rounds_done": float(self.rounds_done),
                    "failures": float(self._failures),
                    **self._traffic.of_run(),
                },
                budget_left=self._gate.budget_left,
            )
            await self._link.publish(self._topics.vitals(self._device), encode_message(shown), retain=True)
            await asyncio.sleep(self._vitals_s)
