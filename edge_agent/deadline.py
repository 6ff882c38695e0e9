"""How long a task's work is of use, and what becomes of training that is not done by then."""

import math
import time

from shared.algorithms import DeviceRound
from shared.algorithms.device import Setup
from shared.errors import OutOfTime


class Deadline:
    """Of one job, from now on.

    seconds    until its result is of no more use
    reserve_s  of these, what is left for the way of an update: who trains longer than that uploads what it has, where
               its algorithm allows it
    """

    def __init__(self, seconds: float, reserve_s: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._stop = self._end - reserve_s

    def check(self) -> None:
        """OutOfTime when it has passed."""
        if time.monotonic() > self._end:
            raise OutOfTime(f"not done within {self._seconds:.0f} s: raise the round's deadline, or lower epochs")

    def train(self, setup: Setup, round_: DeviceRound) -> float:
        """One round of local work; the share of its steps that was done, in (0, 1].

        Below 1 where time ran short and the algorithm is `partial`: an update of fewer steps, at least one, is worth
        more than none (FedProx: Li et al., MLSys 2020, arXiv:1812.06127, section 3.2). It weighs what it always weighs.
        OutOfTime where it is not.
        """
        if not setup.algorithm.partial:
            setup.algorithm.train(round_, setup.hp)
            return 1.0
        done = 0

        def check() -> None:
            """Called before each step; the step before is complete then."""
            nonlocal done
            self.check()
            if done and time.monotonic() > self._stop:
                raise _ShortOfTime
            done += 1

        before, round_.check_time = round_.check_time, check
        try:
            setup.algorithm.train(round_, setup.hp)
        except _ShortOfTime:
            return done / (setup.hp.epochs * math.ceil(len(round_.train) / setup.hp.batch_size))
        finally:
            round_.check_time = before
        return 1.0


class _ShortOfTime(Exception):
    """The rest of the time is needed for the upload."""
