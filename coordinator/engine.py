"""The round state machine, pure: it decides, it never does. No clock, no I/O, no tensors.

Facts (who is online, who answered, who failed) are recorded from events; everything else is derived from them. After
every event the transitions in `TRANSITIONS` are applied until none fits; each one yields one command.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_type_hints

from coordinator.cohort import Needs, Turns, select, unfit
from coordinator.events import (
    AbandonRound,
    Action,
    CloseRound,
    Command,
    DeviceFailed,
    DeviceOffline,
    DeviceOnline,
    Event,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Reported,
    Snapshot,
    UpdateAccepted,
    Verdict,
)
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

SECOND_CHANCES = 1
"""How often a device that failed is asked again before the deadline: without a bound, a fleet that fails at once would
be asked in a hot loop; without any, one transient fault would cost the whole deadline."""


class RoundEngine:
    """One run's rounds.

    A device that drops off, or fails, stops being waited for, but may still answer until the round closes. Devices that
    join while a round is open wait for the next attempt or the next round. What failed is asked again for the same
    round only after others, `SECOND_CHANCES` times before the attempt's deadline, and afresh after it.

    The personalization waits for every device that could train at some time of this run, also one that was never in a
    cohort, or is away or too hot just now. Who fails in it is asked again when it announces itself anew, as often.
    """

    def __init__(self, run: str, settings: RoundSettings, *, seed: int = 0, needs: Needs | None = None) -> None:
        self.run = run
        self.phase = Phase.GATHERING
        self.attempt = 0
        """Attempts of the current round so far; 0 before it was first opened."""
        self.cohort: tuple[str, ...] = ()
        """Devices of the current attempt; empty while none is open."""
        self.deadline: float | None = None
        """When the open attempt, or the personalization, ends."""
        self.known: set[str] = set()
        """Devices that could train at some time of this run, online or not."""
        self._settings = settings
        self._seed = seed
        self._needs = needs or Needs()
        self._closed = 0
        self._online: dict[str, Capabilities | None] = {}
        self._asked: set[str] = set()
        self._answered: dict[str, int] = {}
        self._failed: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._turns: dict[str, Turns] = {}
        self._forgiven_at = 0.0

    # --- queries ----------------------------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The round that is open or comes next, from 1; after the last one, the number of the personalization."""
        return self._closed + 1

    def answered(self) -> set[str]:
        """Devices whose update (or report) was accepted for the current round."""
        return {device for device, number in self._answered.items() if number == self.round}

    def judge(self, device: str, run: str, number: int, action: Action | None = None) -> Verdict:
        """Whether something that `device` sends for round `number` of `run` is welcome now: an answer to `action`."""
        if run != self.run:
            return Verdict.FOREIGN_RUN
        if self._answered.get(device) == number:
            return Verdict.DUPLICATE
        if number < self.round or self.phase is Phase.FINISHED:
            return Verdict.STALE
        if number > self.round:
            return Verdict.FUTURE
        asks: Action = "personalize" if self.phase is Phase.PERSONALIZING else "train"
        if action not in (None, asks) or (asks == "train" and device not in self._asked):
            return Verdict.NOT_IN_COHORT
        return Verdict.WELCOME

    def wanted(self, device: str) -> Action | None:
        """What this device should be doing now, or when it is back."""
        if self._answered.get(device) == self.round or device in self._failed:
            return None
        if self.phase is Phase.PERSONALIZING and device in self.known and self._fit(device):
            return "personalize"
        if self.phase in (Phase.GATHERING, Phase.COLLECTING) and device in self._asked:
            return "train"
        return None

    def unfit(self, capabilities: Capabilities | None) -> str:
        """Why a device with these capabilities is not asked; empty where it can be."""
        return unfit(capabilities, self._needs)

    def next_deadline(self, now: float) -> float | None:
        """When the next Tick is due, if nothing else happens before; None: time alone changes nothing."""
        if self.phase is Phase.GATHERING:
            return self._forgiven_at if self._failures and now < self._forgiven_at else None
        return self.deadline

    # --- events -----------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Commands to execute, in order. `now`: seconds of a monotonic clock."""
        self._record(event)
        commands: list[Command] = []
        while step := next((t for t in TRANSITIONS if t.source is self.phase and t.guard(self, now)), None):
            self.phase = step.target
            commands.append(step.action(self, now))
        return commands

    def _record(self, event: Event) -> None:
        match event:
            case DeviceOnline(device, capabilities):
                self._online[device] = capabilities
                if self._fit(device):
                    self.known.add(device)
                    if self.phase is Phase.PERSONALIZING and self._failures[device] <= SECOND_CHANCES:
                        self._failed.discard(device)
            case DeviceOffline(device):
                self._online.pop(device, None)
            case UpdateAccepted(device, number) | Reported(device, number):
                if self.judge(device, self.run, number) is Verdict.WELCOME:
                    self._answered[device] = number
            case DeviceFailed(device, number, _):
                hot = self.phase is Phase.PERSONALIZING and not self._fit(device)  # it says so when it recovers
                if not hot and device not in self._failed and self.judge(device, self.run, number) is Verdict.WELCOME:
                    self._failed.add(device)
                    self._failures[device] += 1

    # --- derived ----------------------------------------------------------------------------------------------------

    def _fit(self, device: str) -> bool:
        return not unfit(self._online.get(device), self._needs)

    def _missing(self) -> set[str]:
        """Devices that are still waited for."""
        if self.phase is Phase.COLLECTING:
            return {device for device in self.cohort if device in self._online and self.wanted(device)}
        return self.known - self.answered() - self._failed

    def _candidates(self, now: float) -> set[str]:
        """Devices that can be asked for the current round now."""
        return {
            device
            for device in self._online
            if self._fit(device)
            and self._answered.get(device) != self.round
            and (self._failures[device] <= SECOND_CHANCES or now >= self._forgiven_at)
        }

    def _expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    # --- guards of the table ----------------------------------------------------------------------------------------

    def _all_closed(self, now: float) -> bool:
        return self._closed == self._settings.count

    def _quorum(self, now: float) -> bool:
        return len(self.answered()) >= self._settings.quorum

    def _ready(self, now: float) -> bool:
        candidates = self._candidates(now)
        return bool(candidates) and len(candidates | self.answered()) >= self._settings.min_devices

    def _over(self, now: float) -> bool:
        return self._expired(now) or not self._missing()

    def _over_with_quorum(self, now: float) -> bool:
        return self._over(now) and self._quorum(now)

    # --- actions of the table ---------------------------------------------------------------------------------------

    def _open(self, now: float) -> OpenRound:
        settings, answered, candidates = self._settings, self.answered(), self._candidates(now)
        if now >= self._forgiven_at:
            self._failures.clear()
        self._failed.clear()
        self.attempt += 1
        self.cohort = select(
            candidates,
            None if settings.cohort is None else settings.cohort - len(answered),
            turns=self._turns,
            failures=self._failures,
            draw=random.Random(f"{self._seed}/{self.round}/{self.attempt}"),
        )
        self._asked.update(self.cohort)
        for device in self.cohort:
            self._turns[device] = Turns(self._turns.get(device, Turns()).count + 1, self.round)
        self.deadline = self._forgiven_at = now + settings.deadline_s
        return OpenRound(self.round, self.attempt, self.cohort)

    def _abandon(self, now: float) -> AbandonRound:
        arrived = f"{len(self.answered())} of {self._settings.quorum} needed updates"
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
        failed, absent = self._failed - reported, self._missing()
        return Finish(tuple(sorted(reported)), tuple(sorted(failed)), tuple(sorted(absent)))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        return Snapshot(
            phase=self.phase,
            closed=self._closed,
            attempt=self.attempt,
            cohort=self.cohort,
            asked=tuple(sorted(self._asked)),
            known=tuple(sorted(self.known)),
            answered=dict(self._answered),
            turns=dict(self._turns),
        )

    def restore(self, snapshot: Snapshot, answered: Iterable[str], now: float) -> None:
        """Continue from a checkpoint; `answered`: devices whose answer to the current round is on disk.

        Devices of an open attempt are believed online until their presence says otherwise, and an open attempt, or the
        personalization, gets its full time again.
        """
        self.phase, self._closed, self.attempt = snapshot.phase, snapshot.closed, snapshot.attempt
        self.cohort, self._asked, self.known = snapshot.cohort, set(snapshot.asked), set(snapshot.known)
        self._answered = {**snapshot.answered, **dict.fromkeys(answered, self.round)}
        self._turns = dict(snapshot.turns)
        self._online = dict.fromkeys(snapshot.cohort)
        if self.phase is Phase.COLLECTING:
            self.deadline = self._forgiven_at = now + self._settings.deadline_s
        if self.phase is Phase.PERSONALIZING:
            self.deadline = now + self._settings.personalize_deadline_s


@dataclass(frozen=True)
class Transition:
    """In `source`, when `guard` holds: go to `target` and yield the command of `action`."""

    source: Phase
    when: str
    guard: Callable[[RoundEngine, float], bool]
    target: Phase
    action: Callable[[RoundEngine, float], Command]


GATHERING, COLLECTING, PERSONALIZING, FINISHED = Phase
E = RoundEngine
TRANSITIONS: tuple[Transition, ...] = (
    Transition(GATHERING, "all rounds are closed", E._all_closed, PERSONALIZING, E._personalize),
    Transition(GATHERING, "a straggler completes the quorum", E._quorum, GATHERING, E._close),
    Transition(GATHERING, "enough devices are ready", E._ready, COLLECTING, E._open),
    Transition(COLLECTING, "all answered or deadline, with quorum", E._over_with_quorum, GATHERING, E._close),
    Transition(COLLECTING, "all answered or deadline, without quorum", E._over, GATHERING, E._abandon),
    Transition(PERSONALIZING, "all reported or deadline", E._over, FINISHED, E._finish),
)
"""Every transition there is; the first that fits is taken."""


def diagram() -> str:
    """The state diagram as Mermaid text, drawn from the table."""
    edges = "\n".join(
        f"    {t.source} --> {t.target}: {t.when} / {get_type_hints(t.action)['return'].__name__}" for t in TRANSITIONS
    )
    return f"stateDiagram-v2\n    [*] --> {Phase.GATHERING}\n{edges}\n    {Phase.FINISHED} --> [*]\n"
