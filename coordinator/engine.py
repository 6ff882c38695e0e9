"""Synchronous rounds: the engine that waits for its cohort. Pure."""

from coordinator.events import Phase
from coordinator.rounds import Rounds
from coordinator.transitions import Transition


class RoundEngine(Rounds):
    """One run's rounds, synchronous: all devices of a round start from the same tensors.

    A round closes when all have answered, or `enough` of them; who is slower is then told that it is stale. A device
    that drops off, or fails, stops being waited for, but may still answer until the round closes; one that sleeps is
    waited for if it means to be back before the deadline. Devices that join while a round is open wait for the next
    attempt or the next round.
    """

    def _awaited(self, now: float) -> set[str]:
        end = self.deadline or now
        return {device for device in self.cohort if self.wanted(device) and self._roster.awaited(device, end)}

    def _able(self, now: float) -> set[str]:
        return self._candidates(now)

    def _room(self, now: float) -> int | None:
        return None if self._settings.cohort is None else self._settings.cohort - self._arrived()


GATHERING, COLLECTING, PERSONALIZING, FINISHED = Phase
E = RoundEngine
RoundEngine.transitions = (
    Transition(GATHERING, "all rounds are closed, the template made", E._personalizable, PERSONALIZING, E._personalize),
    Transition(GATHERING, "a straggler completes the quorum", E._quorum, GATHERING, E._close),
    Transition(GATHERING, "enough devices are ready", E._ready, COLLECTING, E._open),
    Transition(COLLECTING, "enough answered or deadline, with quorum", E._over_with_quorum, GATHERING, E._close),
    Transition(COLLECTING, "all answered or deadline, without quorum", E._over, GATHERING, E._abandon),
    Transition(PERSONALIZING, "all reported or deadline", E._over, FINISHED, E._finish),
)
