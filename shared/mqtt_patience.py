"""How long a link waits before it connects again. No clock: it is told how long each connection lasted."""

import random

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 30.0
FIRST_TRUCE_S = 15.0
"""After another client took our place; doubled each time, so that two of one name do not fight for ever."""
LONGEST_TRUCE_S = 600.0
SUSPICIOUS = 5
"""So many greetings in a row that are soon followed by the end, and the broker is there each time: some brokers, and
all under MQTT 3.1.1, do not say that another client took our place."""


class Patience:
    """Exponential, with full jitter: a fleet must not come back in step. A connection that lasted starts it anew."""

    def __init__(self) -> None:
        self._failures = 0
        self._takeovers = 0
        self._cut_short = 0
        self._taken_over = False

    @property
    def suspicion(self) -> str:
        """What the end of the last connection looks like, as the end of a sentence; nothing where it is nothing odd.

        A link that breaks all the time looks like one of two that share a name, so no time is lost because of that.
        """
        if self._taken_over:
            return ": another client took our place, with our certificate or name; give each its own"
        if self._cut_short >= SUSPICIOUS:
            return ", time and again; does another client have our certificate or name?"
        return ""

    def delay(self, lasted: float | None, *, taken_over: bool = False) -> float:
        """Seconds until the next attempt. `lasted`: seconds of the connection that has ended, None if there was none;
        `taken_over`: the broker said that a client of our name took our place."""
        self._taken_over = taken_over
        self._cut_short = self._cut_short + 1 if lasted is not None and lasted <= LONGEST_DELAY_S else 0
        if lasted is not None and lasted > LONGEST_DELAY_S:
            self._failures = 0
        if lasted is not None and lasted > LONGEST_TRUCE_S:
            self._takeovers = 0
        if taken_over:
            truce = min(LONGEST_TRUCE_S, FIRST_TRUCE_S * 2**self._takeovers)
            self._takeovers = min(self._takeovers + 1, 16)
            return random.uniform(truce / 2, truce)
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        return random.uniform(0, longest)
