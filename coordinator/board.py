"""What the broker retains for us: our state, the payloads, every device's task."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coordinator.voice import PLAIN, Voice
from shared.link import Link
from shared.messages import Blob, CoordinatorState, Task
from shared.topics import Topics
from shared.transfer import clear_blob, publish_blob


@dataclass(frozen=True)
class Order:
    """A task and its deadline, on the clock of the board."""

    task: Task
    deadline: float


class Board:
    """What is wanted is noted at once and published by `run`, latest first wins: state, payloads, tasks, clearing up.

    No task is published before its payload is there, and an old payload stays until the new one is.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        clock: Callable[[], float],
        published: tuple[Blob, ...] = (),
        voice: Voice = PLAIN,
    ) -> None:
        """`published`: payloads that an earlier start of this coordinator may have left with the broker."""
        self._link = link
        self._topics = topics
        self._clock = clock
        self._voice = voice
        self._state: CoordinatorState | None = None
        self._state_due = False
        self._wanted: dict[Blob, Path] = {}
        self._up: set[Blob] = set()
        self._left: set[Blob] = set(published)
        self._orders: dict[str, Order | None] = {}
        self._due: set[str] = set()
        self._generation = 0
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()

    # --- wishes -----------------------------------------------------------------------------------------------------

    def state(self, state: CoordinatorState) -> None:
        self._state, self._state_due = state, True
        self._change()

    def payloads(self, wanted: Mapping[Blob, Path]) -> None:
        """Exactly these should be there."""
        self._wanted = dict(wanted)
        self._change()

    def order(self, device: str, order: Order | None, *, again: bool = False) -> None:
        """What this device should do, None: nothing. Published if it is news, or `again` with fresh time."""
        if again or self._orders.get(device) != order:
            self._orders[device] = order
            self._due.add(device)
            self._change()

    def connected(self, *, forgotten: bool) -> None:
        """The link is back: meanwhile the broker told everybody our last will. `forgotten`: it has lost the rest, too,
        so all of it is due again."""
        self._state_due = self._state is not None
        if forgotten:
            self._generation += 1
            self._up.clear()
            self._due.update(device for device, order in self._orders.items() if order is not None)
        self._change()

    def withdraw(self, devices: Iterable[str] = ()) -> None:
        """Nothing is asked of anybody any more, nor of these devices, which may have an order of an earlier start."""
        for device in {*devices, *self._orders}:
            self.order(device, None, again=device not in self._orders)
        self.payloads({})

    def published(self) -> set[Blob]:
        """Payloads of which anything may be with the broker, or will be."""
        return {*self._wanted, *self._up, *self._left}

    def lookup(self, digest: str) -> tuple[Blob, Path] | None:
        """A wanted payload by its digest."""
        return next(((blob, path) for blob, path in self._wanted.items() if blob.digest == digest), None)

    @property
    def due(self) -> int:
        """Tasks and payloads that are not yet with the broker as they should be."""
        return len(self._due) + sum(blob not in self._up for blob in self._wanted)

    async def settled(self) -> None:
        """Return when everything is as wanted."""
        await self._settled.wait()

    # --- deeds ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish for ever; LinkError where the link ends."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._state_due and self._state is not None:
                self._state_due = False
                topic = self._topics.coordinator
                await self._link.publish(topic, self._voice(topic, self._state), retain=True)
            await self._publish_payloads()
            due, self._due = self._due, set()
            await asyncio.gather(*map(self._publish_order, sorted(due)))
            await self._clear_payloads()
            if not self._changed.is_set():
                self._settled.set()

    async def _publish_payloads(self) -> None:
        while blob := next((blob for blob in self._wanted if blob not in self._up), None):
            while old := next(
                (old for old in self._up | self._left if old.digest == blob.digest and old != blob), None
            ):
                await self._clear(old)  # other chunks under the same topics: one of them has to go first
            generation = self._generation
            self._left.add(blob)  # from the first chunk on it may be there, whatever becomes of the wish
            await publish_blob(self._link, self._topics, self._wanted[blob], blob)
            if generation == self._generation:
                self._up.add(blob)
                self._left.discard(blob)

    async def _publish_order(self, device: str) -> None:
        order, topic = self._orders[device], self._topics.task(device)
        payload = b""
        if order is not None:
            left = max(0.0, order.deadline - self._clock())
            payload = self._voice(topic, order.task.model_copy(update={"time_left_s": left}))
        await self._link.publish(topic, payload, retain=True)

    async def _clear_payloads(self) -> None:
        while blob := next((blob for blob in self._up | self._left if blob not in self._wanted), None):
            await self._clear(blob)

    async def _clear(self, blob: Blob) -> None:
        await clear_blob(self._link, self._topics, blob)
        self._up.discard(blob)
        self._left.discard(blob)

    def _change(self) -> None:
        self._settled.clear()
        self._changed.set()
