"""The round state machine, pure: it decides, it never does. No clock, no I/O, no tensors.

Facts are recorded from events (coordinator.facts); everything else is derived from them. After every event the
transitions of the engine's table are applied until none fits; each one yields one command.
"""

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from coordinator.cohort import Turns, select
from coordinator.events import (
    AbandonRound,
    CloseRound,
    Command,
    Event,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
)
from coordinator.facts import SECOND_CHANCES, Facts
from coordinator.transitions import Transition


class Rounds(Facts, ABC):
    """One run's rounds: what is the same whether they are synchronous (`coordinator.engine`) or buffered
    (`coordinator.buffered`).

    What failed is asked again for the same round only after others, `SECOND_CHANCES` times before the deadline, and
    afresh after it. Nothing is asked of a device in quarantine, nor taken from it; what was accepted before counts.

    Nothing is begun for which the run's ONNX template is lacking.

    The personalization waits for every device that could train at some time of this run, also one that was never in a
    cohort, or is away or too hot just now. Who fails in it is asked again when it announces itself anew, as often.
    """

    transitions: ClassVar[tuple[Transition, ...]]
    """Every transition there is; the first that fits is taken."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Commands to execute, in order. `now`: seconds of a monotonic clock."""
        self._record(event, now)
        commands: list[Command] = []
        while step := next((t for t in self.transitions if t.source is self.phase and t.guard(self, now)), None):
            self.phase = step.target
            commands.append(step.action(self, now))
        return commands

    def next_deadline(self, now: float) -> float | None:
        """When the next Tick is due, if nothing else happens before; None: time alone changes nothing."""
        if self.phase is Phase.GATHERING:
            return self._forgiven_at if self._failures and now < self._forgiven_at else None
        return self.deadline

    # --- derived ----------------------------------------------------------------------------------------------------

    def _arrived(self) -> int:
        """Updates of the current round that were accepted."""
        return len(self.answered())

    def _missing(self, now: float) -> set[str]:
        """Devices that are still waited for."""
        if self.phase is Phase.COLLECTING:
            return self._awaited(now)
        return {d for d in self.known - self.answered() - self._failed if not self._roster.quarantined(d)}

    @abstractmethod
    def _awaited(self, now: float) -> set[str]:
        """Devices that the open round waits for."""

    @abstractmethod
    def _able(self, now: float) -> set[str]:
        """Devices that could be at work on a round that is opened now."""

    @abstractmethod
    def _room(self, now: float) -> int | None:
        """How many can be asked; None: all."""

    def _candidates(self, now: float) -> set[str]:
        """Devices that can be asked for the current round now."""
        return {
            device
            for device in self._roster.candidates(now, now + self._settings.deadline_s)
            if self._answered.get(device) != self.round
            and (self._failures[device] <= SECOND_CHANCES or now >= self._forgiven_at)
        }

    def _expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    # --- guards of the table ----------------------------------------------------------------------------------------

    def _all_closed(self, now: float) -> bool:
        return self._closed == self._settings.count

    def _personalizable(self, now: float) -> bool:
        return self._all_closed(now) and not self.lacks_template("personalize")

    def _quorum(self, now: float) -> bool:
        return self.attempt > 0 and self._arrived() >= self._settings.quorum

    def _ready(self, now: float) -> bool:
        if self._all_closed(now) or self.lacks_template("train"):
            return False
        able, settings = self._able(now), self._settings
        present = able | self.answered()
        enough = len(present) >= settings.quorum and len(present | self._roster.barred()) >= settings.min_devices
        return bool(able) and enough

    def _over(self, now: float) -> bool:
        return self._expired(now) or not self._missing(now)

    def _over_with_quorum(self, now: float) -> bool:
        return self._arrived() >= self._enough or (self._over(now) and self._quorum(now))

    # --- actions of the table ---------------------------------------------------------------------------------------

    def _open(self, now: float) -> OpenRound:
        if now >= self._forgiven_at:
            self._failures.clear()
        self._failed.clear()
        self.attempt += 1
        self.deadline = self._forgiven_at = now + self._settings.deadline_s
        self.cohort = self._ask(now)
        return OpenRound(self.round, self.attempt, self.cohort)

    def _ask(self, now: float) -> tuple[str, ...]:
        """Who is asked now, sorted; nobody is asked who has something to do already."""
        chosen = select(
            self._candidates(now),
            self._room(now),
            turns=self._turns,
            failures=self._failures,
            draw=random.Random(f"{self._seed}/{self.round}/{self.attempt}"),
        )
        self._asked.update(dict.fromkeys(chosen, self.round))
        for device in chosen:
            self._turns[device] = Turns(self._turns.get(device, Turns()).count + 1, self.round)
        return chosen

    def _abandon(self, now: float) -> AbandonRound:
        arrived = f"{self._arrived()} of {self._settings.quorum} needed updates"
        reason = f"deadline with {arrived}" if self._expired(now) else f"nobody left to wait for with {arrived}"
        self.cohort, self.deadline = (), None
        return AbandonRound(self.round, self.attempt, reason)

    def _close(self, now: float) -> CloseRound:
        command = CloseRound(self.round, self.attempt)
        self._closed += 1
        self.attempt, self.cohort, self.deadline = 0, (), None
        self._asked.clear()
        self._failed.clear()
        self._failures.clear()
        return command

    def _personalize(self, now: float) -> OpenPersonalization:
        self.deadline = now + self._settings.personalize_deadline_s
        return OpenPersonalization(self.round)

    def _finish(self, now: float) -> Finish:
        self.deadline = None
        reported = self.answered()
        failed = self._failed - reported
        return Finish(*(tuple(sorted(each)) for each in (reported, failed, self.known - reported - failed)))
