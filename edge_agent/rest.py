"""When a device that sleeps may lie down, and for how long. Decided here, done by edge_agent.agent."""

from edge_agent.session import Phase

PATIENCE = 6
"""Stall times without a sign of anybody, after which a device lies down with something unfinished: it is on the disk,
and goes on when the device wakes."""


def patience_s(phase: Phase, *, linked: bool, stall_s: float) -> float | None:
    """For how long nothing may come in before the device lies down; None: it stays up, whatever comes.

    With nothing to do one stall time is enough: what the broker has kept for us comes at once, and a coordinator that
    sees us arrive asks at once.
    """
    if phase is Phase.WORKING:
        return None
    if phase is Phase.IDLE and linked:
        return stall_s
    return PATIENCE * stall_s


def sleep_s(every_s: float, awake_s: float) -> float:
    """Seconds of sleep until the next awakening, where one comes every `every_s` and the last is `awake_s` ago."""
    return every_s - awake_s % every_s
