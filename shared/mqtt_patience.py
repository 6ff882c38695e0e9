"""How long a link waits before it connects again. No clock: it is told how long each connection lasted."""

import random

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 30.0
FIRST_TRUCE_S = 15.0
"""After another client took our place; doubled each time, so that two of one name do not fight for ever."""
LONGEST_TRUCE_S = 600.0


class Patience:
    """Exponential, with full jitter: a fleet must not come back in step. A connection that lasted starts it anew."""

    def __init__(self) -> None:
        self._failures = 0
        self._takeovers = 0

    def delay(self, lasted: float, *, taken_over: bool = False) -> float:
        """Seconds until the next attempt. `lasted`: seconds of the connection that has ended, 0 if there was none;
        `taken_over`: by another client of our name."""
        if lasted > LONGEST_DELAY_S:
            self._failures = 0
        if lasted > LONGEST_TRUCE_S:
            self._takeovers = 0
        if taken_over:
            truce = min(LONGEST_TRUCE_S, FIRST_TRUCE_S * 2**self._takeovers)
            self._takeovers = min(self._takeovers + 1, 16)
            return random.uniform(truce / 2, truce)
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        return random.uniform(0, longest)
