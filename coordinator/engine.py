"""The round state machine, pure: it decides, it never does. No clock, no I/O, no tensors.

Facts (who is there, who answered, who failed) are recorded from events; everything else is derived from them. After
every event the transitions of the engine's table are applied until none fits; each one yields one command.

`RoundEngine` holds synchronous rounds; `coordinator.buffered` lets devices train without waiting for each other.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

from coordinator.cohort import Needs, Turns, select
from coordinator.events import (
    AbandonRound,
    Action,
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
    Snapshot,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.roster import Roster
from coordinator.transitions import Transition
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

SECOND_CHANCES = 1
"""How often a device that failed is asked again before the deadline: without a bound, a fleet that fails at once would
be asked in a hot loop; without any, one transient fault would cost the whole deadline."""


class RoundEngine:
    """One run's rounds, synchronous: all devices of a round start from the same tensors.

    A round closes when all have answered, or `enough` of them; who is slower is then told that it is stale. A device
    that drops off, or fails, stops being waited for, but may still answer until the round closes; one that sleeps is
    waited for if it means to be back before the deadline. Devices that join while a round is open wait for the next
    attempt or the next round. What failed is asked again for the same round only after others, `SECOND_CHANCES` times
    before the attempt's deadline, and afresh after it. Nothing is asked of a device in quarantine, nor taken from it;
    what was accepted before counts.

    The personalization waits for every device that could train at some time of this run, also one that was never in a
    cohort, or is away or too hot just now. Who fails in it is asked again when it announces itself anew, as often.
    """

    transitions: ClassVar[tuple[Transition, ...]]
    """Every transition there is; the first that fits is taken."""

    def __init__(self, run: str, settings: RoundSettings, *, seed: int = 0, needs: Needs | None = None) -> None:
        self.run = run
        self.phase = Phase.GATHERING
        self.attempt = 0
        """Attempts of the current round so far; 0 before it was first opened."""
        self.cohort: tuple[str, ...] = ()
        """Devices of the current attempt; empty while none is open."""
        self.deadline: float | None = None
        """When the open attempt, or the personalization, ends."""
        self._settings = settings
        self._seed = seed
        self._roster = Roster(needs or Needs())
        self._closed = 0
        self._asked: dict[str, int] = {}
        self._answered: dict[str, int] = {}
        self._failed: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._turns: dict[str, Turns] = {}
        self._forgiven_at = 0.0
        self._patience = 0
        """How many rounds may have closed since the one that a welcome update started from."""
        self._enough: float = settings.enough or math.inf

    # --- queries ----------------------------------------------------------------------------------------------------

    @property
    def known(self) -> set[str]:
        """Devices that could train at some time of this run, online or not."""
        return self._roster.known

    @property
    def round(self) -> int:
        """The round that is open or comes next, from 1; after the last one, the number of the personalization."""
        return self._closed + 1

    def answered(self) -> set[str]:
        """Devices whose update (or report) was accepted for the current round."""
        return {device for device, number in self._answered.items() if number == self.round}

    def judge(self, device: str, run: str, number: int, action: Action | None = None) -> Verdict:
        """Whether something that `device` sends, and that started from round `number` of `run`, is welcome now: an
        answer to `action`."""
        if run != self.run:
            return Verdict.FOREIGN_RUN
        if self._answered.get(device) == number:
            return Verdict.DUPLICATE
        if self._roster.quarantined(device):
            return Verdict.QUARANTINED
        if number > self.round and self.phase is not Phase.FINISHED:
            return Verdict.FUTURE
        asks: Action = "train" if self._training else "personalize"
        asked = (self._asked.get(device) if self._training else self.round) == number
        if self.phase is Phase.FINISHED or number < self.round - self._patience or (number < self.round and not asked):
            return Verdict.STALE
        return Verdict.WELCOME if asked and action in (None, asks) else Verdict.NOT_IN_COHORT

    def wanted(self, device: str) -> Action | None:
        """What this device should be doing now, or when it is back."""
        if self._roster.quarantined(device) or device in self._failed:
            return None
        if self._training:
            start = self._asked.get(device)
            return None if start is None or self._answered.get(device) == start else "train"
        asks = self.phase is Phase.PERSONALIZING and self._answered.get(device) != self.round
        return "personalize" if asks and device in self.known and self._roster.able(device) else None

    def start(self, device: str) -> int:
        """The round from whose tensors this device does what is wanted of it."""
        return self._asked.get(device, self.round) if self._training else self.round

    def starts(self) -> set[int]:
        """The rounds from whose tensors anything is done, or will be."""
        return {self.round, *self._asked.values()}

    def due(self, device: str) -> float | None:
        """When it is too late for what is wanted of this device; None: that is not known before it is asked again."""
        return self.deadline

    def unfit(self, capabilities: Capabilities | None) -> str:
        """Why a device with these capabilities is not asked; empty where it can be."""
        return self._roster.unfit(capabilities)

    def quarantined(self, device: str) -> bool:
        return self._roster.quarantined(device)

    def next_deadline(self, now: float) -> float | None:
        """When the next Tick is due, if nothing else happens before; None: time alone changes nothing."""
        if self.phase is Phase.GATHERING:
            return self._forgiven_at if self._failures and now < self._forgiven_at else None
        return self.deadline

    # --- events -----------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Commands to execute, in order. `now`: seconds of a monotonic clock."""
        self._record(event, now)
        commands: list[Command] = []
        while step := next((t for t in self.transitions if t.source is self.phase and t.guard(self, now)), None):
            self.phase = step.target
            commands.append(step.action(self, now))
        return commands

    def _record(self, event: Event, now: float) -> None:
        match event:
            case UpdateAccepted(device, number) | Reported(device, number):
                if self.judge(device, self.run, number) is Verdict.WELCOME:
                    self._take(device, number)
            case DeviceFailed(device, number, _):
                hot = self.phase is Phase.PERSONALIZING and not self._roster.able(device)  # it says when it recovers
                if not hot and device not in self._failed and self.judge(device, self.run, number) is Verdict.WELCOME:
                    self._give_up(device)
            case Tick():
                pass
            case _:
                self._roster.record(event, now)
                news = isinstance(event, DeviceOnline) and self._roster.able(event.device)
                if news and self.phase is Phase.PERSONALIZING and self._failures[event.device] <= SECOND_CHANCES:
                    self._failed.discard(event.device)

    def _take(self, device: str, number: int) -> None:
        self._answered[device] = number

    def _give_up(self, device: str) -> None:
        self._failures[device] += 1
        self._failed.add(device)

    # --- derived ----------------------------------------------------------------------------------------------------

    @property
    def _training(self) -> bool:
        return self.phase in (Phase.GATHERING, Phase.COLLECTING)

    def _arrived(self) -> int:
        """Updates of the current round that were accepted."""
        return len(self.answered())

    def _missing(self, now: float) -> set[str]:
        """Devices that are still waited for."""
        if self.phase is Phase.COLLECTING:
            end = self.deadline or now
            return {device for device in self.cohort if self.wanted(device) and self._roster.awaited(device, end)}
        return {d for d in self.known - self.answered() - self._failed if not self._roster.quarantined(d)}

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

    def _quorum(self, now: float) -> bool:
        return self.attempt > 0 and self._arrived() >= self._settings.quorum

    def _ready(self, now: float) -> bool:
        candidates = self._candidates(now)
        return bool(candidates) and len(candidates | self.answered() | self._roster.barred()) >= self._settings.min_devices

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

    def _room(self, now: float) -> int | None:
        """How many can be asked; None: all."""
        return None if self._settings.cohort is None else self._settings.cohort - self._arrived()

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

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        return Snapshot(
            phase=self.phase,
            closed=self._closed,
            attempt=self.attempt,
            cohort=self.cohort,
            asked=dict(sorted(self._asked.items())),
            known=tuple(sorted(self.known)),
            answered=dict(self._answered),
            turns=dict(self._turns),
        )

    def restore(self, snapshot: Snapshot, answered: Iterable[tuple[str, int]], now: float) -> None:
        """Continue from a checkpoint; `answered`: devices whose answer to the current round is on disk, and the round
        that each started from.

        Devices of an open attempt are believed online until their presence says otherwise, and an open attempt, or the
        personalization, gets its full time again.
        """
        self.phase, self._closed, self.attempt = snapshot.phase, snapshot.closed, snapshot.attempt
        self.cohort, self._asked = snapshot.cohort, dict(snapshot.asked)
        self._answered, self._turns = dict(snapshot.answered), dict(snapshot.turns)
        self._roster.restore(snapshot.known, snapshot.cohort)
        for device, number in answered:
            self._take(device, number)
        if self.phase is Phase.COLLECTING:
            self.deadline = self._forgiven_at = now + self._settings.deadline_s
        if self.phase is Phase.PERSONALIZING:
            self.deadline = now + self._settings.personalize_deadline_s


GATHERING, COLLECTING, PERSONALIZING, FINISHED = Phase
E = RoundEngine
RoundEngine.transitions = (
    Transition(GATHERING, "all rounds are closed", E._all_closed, PERSONALIZING, E._personalize),
    Transition(GATHERING, "a straggler completes the quorum", E._quorum, GATHERING, E._close),
    Transition(GATHERING, "enough devices are ready", E._ready, COLLECTING, E._open),
    Transition(COLLECTING, "enough answered or deadline, with quorum", E._over_with_quorum, GATHERING, E._close),
    Transition(COLLECTING, "all answered or deadline, without quorum", E._over, GATHERING, E._abandon),
    Transition(PERSONALIZING, "all reported or deadline", E._over, FINISHED, E._finish),
)
