"""Rounds that nobody is waited for in: FedBuff (Nguyen et al., AISTATS 2022, arXiv:2106.06639, algorithm 1). Pure.

A device that has answered begins anew with the newest global tensors, whatever the others do. Every `enough` updates
(without that setting: `quorum`), the paper's K, close a round: they become the next global tensors. An update may have
started some rounds ago; `coordinator.staleness` says what it then counts.
"""

from collections.abc import Iterable

from coordinator.cohort import Needs
from coordinator.events import Action, AskDevices, CloseRound, Phase, Snapshot
from coordinator.rounds import Rounds
from coordinator.transitions import Transition
from shared.config_rounds import RoundSettings


class BufferedEngine(Rounds):
    """One run's rounds, buffered. What differs from synchronous ones:

    The cohort is who is at work, at most `cohort` devices at any time (the paper's concurrency). Each has `deadline_s`
    of its own for what it was asked; then it may be asked again, and its place is free. A device answers each round's
    tensors at most once: with the same ones it would only say the same again, and K answers of one fast device are not
    K devices. So one that is too fast waits until the round closes, and a round may hold two updates of a device, from
    different rounds. An update is welcome up to `max_staleness` rounds after the one that it started from; whoever is
    still at work then begins anew.

    A round that is not full at its deadline is closed if the quorum is there, else it is asked again; those at work
    stay at it.
    """

    def __init__(
        self,
        run: str,
        settings: RoundSettings,
        *,
        seed: int = 0,
        needs: Needs | None = None,
        template: Action | None = None,
    ) -> None:
        super().__init__(run, settings, seed=seed, needs=needs, template=template)
        self._patience = settings.max_staleness
        self._enough = settings.enough or settings.quorum
        self._due: dict[str, float] = {}
        self._buffer: set[tuple[str, int]] = set()

    # --- queries ----------------------------------------------------------------------------------------------------

    def answered(self) -> set[str]:
        return {device for device, _ in self._buffer} if self._training else super().answered()

    def due(self, device: str) -> float | None:
        return self._due.get(device) if self._training else self.deadline

    def next_deadline(self, now: float) -> float | None:
        ends = [super().next_deadline(now), *(self._due[device] for device in self._busy(now))]
        return min((end for end in ends if end is not None), default=None)

    # --- facts ------------------------------------------------------------------------------------------------------

    def _take(self, device: str, number: int) -> None:
        super()._take(device, number)
        if self._training:
            self._buffer.add((device, number))
            self._leave(device, number)

    def _give_up(self, device: str) -> None:
        super()._give_up(device)
        if self._training:
            self._failed.discard(device)  # it has nothing to do any more, and begins anew if it is asked again
            self._leave(device, self._asked[device])

    def _leave(self, device: str, number: int) -> None:
        """It is no longer at work on what started from round `number`."""
        if self._asked.get(device) == number:
            del self._asked[device]
            self._due.pop(device, None)

    # --- derived ----------------------------------------------------------------------------------------------------

    def _busy(self, now: float) -> set[str]:
        """Who is at work, or will be before it is too late."""
        return {
            device
            for device, due in self._due.items()
            if now < due and self._roster.awaited(device, due) and not self._roster.quarantined(device)
        }

    def _arrived(self) -> int:
        return len(self._buffer) if self._training else super()._arrived()

    def _awaited(self, now: float) -> set[str]:
        return self._able(now)

    def _able(self, now: float) -> set[str]:
        return self._busy(now) | self._candidates(now)

    def _candidates(self, now: float) -> set[str]:
        return super()._candidates(now) - self._busy(now)

    def _room(self, now: float) -> int | None:
        limit = self._settings.cohort
        return None if limit is None else max(0, limit - len(self._busy(now)))

    # --- guards and actions of the table ----------------------------------------------------------------------------

    def _idle(self, now: float) -> bool:
        return bool(self._candidates(now)) and self._room(now) != 0

    def _ask(self, now: float) -> tuple[str, ...]:
        """Asks whom there is room for; all that are at work now."""
        chosen = super()._ask(now)
        self._due.update(dict.fromkeys(chosen, now + self._settings.deadline_s))
        return tuple(sorted(self._busy(now)))

    def _ask_more(self, now: float) -> AskDevices:
        before = self._busy(now)
        self.cohort = self._ask(now)
        return AskDevices(self.round, tuple(sorted({*self.cohort} - before)))

    def _close(self, now: float) -> CloseRound:
        asked = self._asked.copy()
        command = super()._close(now)
        self._buffer.clear()
        if not self._all_closed(now):
            self._asked = {d: start for d, start in asked.items() if self.round - start <= self._patience}
        self._due = {device: due for device, due in self._due.items() if device in self._asked}
        return command

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot, answered: Iterable[tuple[str, int]], now: float) -> None:
        """As in synchronous rounds; those at work are believed there, and get their full time again, too."""
        super().restore(snapshot, answered, now)
        self._due = dict.fromkeys(self._asked, now + self._settings.deadline_s)


GATHERING, COLLECTING, PERSONALIZING, FINISHED = Phase
B = BufferedEngine
BufferedEngine.transitions = (
    Transition(GATHERING, "all rounds are closed, the template made", B._personalizable, PERSONALIZING, B._personalize),
    Transition(GATHERING, "a straggler completes the quorum", B._quorum, GATHERING, B._close),
    Transition(GATHERING, "enough devices are ready", B._ready, COLLECTING, B._open),
    Transition(COLLECTING, "the buffer is full or deadline, with quorum", B._over_with_quorum, GATHERING, B._close),
    Transition(COLLECTING, "nobody is at work or deadline, without quorum", B._over, GATHERING, B._abandon),
    Transition(COLLECTING, "a device is free", B._idle, COLLECTING, B._ask_more),
    Transition(PERSONALIZING, "all reported or deadline", B._over, FINISHED, B._finish),
)
