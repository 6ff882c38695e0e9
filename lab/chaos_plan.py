"""Which faults happen when, to whom, for how long: a pure function of a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

BROKER, COORDINATOR = "broker", "coordinator"


class Kind(StrEnum):
    """What can go wrong. Whom it concerns: the broker, the coordinator, or one party (coordinator or device)."""

    BROKER_KILLED = "broker-killed"
    """SIGKILL, then started again with what it had saved."""
    BROKER_WIPED = "broker-wiped"
    """SIGKILL, then started again without anything it had saved."""
    SMALL_PACKETS = "small-packets"
    """Started again, and takes no packet of more than 100 KiB any more."""
    SHORT_QUEUE = "short-queue"
    """Started again, and drops what it has queued for a client beyond 10 messages."""
    COORDINATOR_KILLED = "coordinator-killed"
    COORDINATOR_KILLED_MID_UPLOAD = "coordinator-killed-mid-upload"
    """SIGKILL at the next chunk of an update: it comes back with another epoch."""
    AGENT_KILLED = "agent-killed"
    AGENT_STOPPED = "agent-stopped"
    """SIGSTOP: it holds its connection, and does nothing."""
    LINK_CUT = "link-cut"
    """RST, once."""
    LINK_DEAD = "link-dead"
    """Half-open: no byte passes, nobody is told."""
    LINK_SLOW = "link-slow"
    LINK_LATE = "link-late"
    ACKS_LOST = "acks-lost"
    """The broker's acknowledgements do not arrive; then the connection is cut."""
    REPEATED = "repeated"
    """Deliveries come twice, or out of order."""
    DISK_FULL = "disk-full"
    CLOCK_JUMPED = "clock-jumped"
    """The wall clock is a day ahead, or behind."""


BROKERS = (Kind.BROKER_KILLED, Kind.BROKER_WIPED, Kind.SMALL_PACKETS, Kind.SHORT_QUEUE)
COORDINATORS = (Kind.COORDINATOR_KILLED, Kind.COORDINATOR_KILLED_MID_UPLOAD)
AGENTS = (Kind.AGENT_KILLED, Kind.AGENT_STOPPED)
LASTS: dict[Kind, tuple[float, float]] = {
    Kind.BROKER_KILLED: (0.0, 3.0),
    Kind.BROKER_WIPED: (0.0, 3.0),
    Kind.SMALL_PACKETS: (5.0, 15.0),
    Kind.SHORT_QUEUE: (5.0, 15.0),
    Kind.COORDINATOR_KILLED: (0.0, 3.0),
    Kind.COORDINATOR_KILLED_MID_UPLOAD: (0.0, 1.0),
    Kind.AGENT_KILLED: (0.0, 4.0),
    Kind.AGENT_STOPPED: (1.0, 12.0),
    Kind.LINK_CUT: (0.0, 0.0),
    Kind.LINK_DEAD: (2.0, 12.0),
    Kind.LINK_SLOW: (3.0, 10.0),
    Kind.LINK_LATE: (3.0, 10.0),
    Kind.ACKS_LOST: (1.0, 5.0),
    Kind.REPEATED: (5.0, 15.0),
    Kind.DISK_FULL: (2.0, 6.0),
    Kind.CLOCK_JUMPED: (2.0, 10.0),
}
"""Seconds from the beginning of a fault to its end, at least and at most."""
CALM_S = 3.0
"""Between the beginnings of two faults, on average."""


@dataclass(frozen=True)
class Fault:
    """at, seconds: of the run's time; strength: what the kind makes of it, 0 to 1."""

    at: float
    kind: Kind
    party: str
    seconds: float
    strength: float


def plan(seed: int, seconds: float, devices: Sequence[str], kinds: Sequence[Kind] = tuple(Kind)) -> tuple[Fault, ...]:
    """Faults in order of their beginning; all end before `seconds`. The same arguments give the same faults.

    Every kind comes once before any comes again, as far as time allows. What strikes one party, the broker among them,
    does not overlap; everything else may.
    """
    draw = random.Random(f"chaos/{seed}")
    faults: list[Fault] = []
    busy: dict[str, float] = {}
    deck: list[Kind] = []
    at = draw.expovariate(1 / CALM_S)
    while at < seconds:
        if not deck:
            deck = draw.sample(list(kinds), len(kinds))
        kind = deck.pop()
        party, lasts, strength = _party(kind, devices, draw), draw.uniform(*LASTS[kind]), draw.random()
        at = max(at, busy.get(party, 0.0))
        if at + lasts < seconds:
            faults.append(Fault(round(at, 3), kind, party, round(lasts, 3), round(strength, 3)))
            busy[party] = at + lasts + 0.5  # so that a party is there again before the next one strikes it
        at += draw.expovariate(1 / CALM_S)
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _party(kind: Kind, devices: Sequence[str], draw: random.Random) -> str:
    if kind in BROKERS:
        return BROKER
    if kind in COORDINATORS:
        return COORDINATOR
    if kind in AGENTS:
        return draw.choice(devices)
    return draw.choice([COORDINATOR, *devices])
