"""What each device should do now: its download, and the task that names it."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from coordinator.board import Board, Order
from coordinator.chronicle import Chronicle
from coordinator.fleet import Fleet
from coordinator.payloads import Payloads
from coordinator.rounds import Rounds
from shared.messages import Blob, Task
from shared.topics import Topics
from shared.transfer import published_size

if TYPE_CHECKING:
    from coordinator.ledger import Ledger


class Orders:
    """The engine says who should do what; the board is told. in_full_s: what a task has that is given out of time."""

    def __init__(
        self,
        *,
        engine: Rounds,
        ledger: "Ledger",
        fleet: Fleet,
        chronicle: Chronicle,
        board: Board,
        payloads: Payloads,
        topics: Topics,
        in_full_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._fleet = fleet
        self._chronicle = chronicle
        self._board = board
        self._payloads = payloads
        self._topics = topics
        self._in_full_s = in_full_s
        self._clock = clock

    async def give(self, devices: Iterable[str]) -> bool:
        """Let those of the devices that should do something have their download; whether any of them had none.

        Not before a device has said, since our start, what it reads: until then it has what it was given before.
        """
        takers = {
            device: encodings
            for device in devices
            if self._engine.wanted(device) and (encodings := self._fleet.encodings(device)) is not None
        }
        given: dict[str, Blob] = {}
        for start in sorted({self._engine.start(device) for device in takers}):
            these = {device: liked for device, liked in takers.items() if self._engine.start(device) == start}
            given |= await self._payloads.give(start, these)
        packets = {blob: published_size(self._topics, blob, range(blob.chunks)) for blob in set(given.values())}
        for device, blob in given.items():
            self._chronicle.given(device, blob.size, packets[blob])
        return bool(given)

    def order(self, device: str, *, again: bool = False) -> None:
        """Have the device told what it should do. Stragglers keep their order while no attempt is open."""
        action, deadline, start = self._engine.wanted(device), self._engine.due(device), self._engine.start(device)
        template = self._payloads.template if action == "personalize" or self._ledger.measures else None
        if action is None:
            self._board.order(device, None, again=again)
        elif template is None and self._engine.lacks_template(action):
            pass  # after a restart: until then it has the order that it was given before
        elif (payload := self._payloads.of(device, start)) is not None and (deadline is not None or again):
            task = Task(
                run=self._engine.run,
                action=action,
                round=start,
                plan=self._ledger.plan,
                payload=payload,
                initial=self._payloads.initial,
                template=template,
                time_left_s=0,
            )
            in_full = self._clock() + self._in_full_s
            self._board.order(device, Order(task, in_full if deadline is None else deadline), again=again)
