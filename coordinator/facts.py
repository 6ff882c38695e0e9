"""What has happened in a run: recorded from events, kept in checkpoints, asked for by the shell. Pure."""

import math
from collections import Counter
from collections.abc import Iterable

from coordinator.cohort import Needs, Turns
from coordinator.events import (
    Action,
    DeviceFailed,
    DeviceOnline,
    Event,
    Phase,
    Prepared,
    Reported,
    Snapshot,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.roster import Roster
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

SECOND_CHANCES = 1
"""How often a device that failed is asked again before the deadline: without a bound, a fleet that fails at once would
be asked in a hot loop; without any, one transient fault would cost the whole deadline."""


class Facts:
    """Who is there, who was asked, who answered or failed, in which phase of which round."""

    def __init__(
        self,
        run: str,
        settings: RoundSettings,
        *,
        seed: int = 0,
        needs: Needs | None = None,
        template: Action | None = None,
    ) -> None:
        """template: what is not begun before `Prepared`, where devices need the ONNX template for it: to personalize,
        or already to train."""
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
        self._lacking = template
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
        answers: Action = "train" if number <= self._settings.count else "personalize"
        if self._answered.get(device) == number and action in (None, answers):
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

    def lacks_template(self, action: Action) -> bool:
        """Whether this cannot begin, as the template is still being made."""
        return self._lacking in (action, "train")

    def unfit(self, capabilities: Capabilities | None) -> str:
        """Why a device with these capabilities is not asked; empty where it can be."""
        return self._roster.unfit(capabilities)

    def quarantined(self, device: str) -> bool:
        return self._roster.quarantined(device)

    @property
    def _training(self) -> bool:
        return self.phase in (Phase.GATHERING, Phase.COLLECTING)

    # --- events -----------------------------------------------------------------------------------------------------

    def _record(self, event: Event, now: float) -> None:
        match event:
            case UpdateAccepted(device, number) | Reported(device, number):
                if self.judge(device, self.run, number) is Verdict.WELCOME:
                    self._take(device, number)
            case DeviceFailed(device, number, _):
                hot = self.phase is Phase.PERSONALIZING and not self._roster.able(device)  # it says when it recovers
                if not hot and device not in self._failed and self.judge(device, self.run, number) is Verdict.WELCOME:
                    self._give_up(device)
            case Prepared():
                self._lacking = None
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

        Who is at work in an open attempt is believed online until its presence says otherwise, and an open attempt, or
        the personalization, gets its full time again.
        """
        self.phase, self._closed, self.attempt = snapshot.phase, snapshot.closed, snapshot.attempt
        self.cohort, self._asked = snapshot.cohort, dict(snapshot.asked)
        self._answered, self._turns = dict(snapshot.answered), dict(snapshot.turns)
        self._roster.restore(snapshot.known, self._asked.keys() & snapshot.cohort)
        for device, number in answered:
            self._take(device, number)
        if self.phase is Phase.COLLECTING:
            self.deadline = self._forgiven_at = now + self._settings.deadline_s
        if self.phase is Phase.PERSONALIZING:
            self.deadline = now + self._settings.personalize_deadline_s
