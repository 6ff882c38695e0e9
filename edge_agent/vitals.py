"""What a device tells of itself, retained at the broker: what it can do, and how it fares. Nothing of its data."""

from collections.abc import Mapping
from importlib import metadata

from edge_agent.health import Reading
from edge_agent.session import Session
from shared.encoding import LIKED
from shared.messages import Capabilities, Vitals
from shared.profiles import Profile

MIB = 2**20


def capabilities(profile: Profile, session: Session, *, examples: int, max_packet: int) -> Capabilities:
    """What the coordinator needs to know before it asks this device for anything.

    examples    that it trains on; 0 before its first task
    max_packet  bytes of the largest packet that its link takes
    """
    return Capabilities(
        profile=profile.id,
        train=session.healthy,
        reason=session.reason[:500],
        examples=examples,
        memory_mib=profile.training.memory_mib,
        max_packet=min(max_packet, profile.link.max_packet),
        encodings=tuple(LIKED[profile.link.kind]),
        version=metadata.version("talaria"),
    )


def vitals(
    session: Session,
    reading: Reading,
    *,
    epoch: int,
    uptime_s: float,
    counts: Mapping[str, float],
    budget_left: int | None,
) -> Vitals:
    """What is not known is left out.

    counts       `bytes_up` and `bytes_down` of the run, `rounds_done` and `failures` since the agent's start
    budget_left  bytes that a metered link may still carry today; None: it is not metered
    """
    known = {
        "temperature_c": reading.temperature_c,
        "battery_pct": reading.battery_pct,
        "load_per_core": reading.load_per_core,
        "available_mib": reading.available_mib,
        "budget_left_mib": None if budget_left is None else budget_left / MIB,
    }
    metrics = {**counts, **{name: float(value) for name, value in known.items() if value is not None}}
    return Vitals(epoch=epoch, phase=session.phase.value, uptime_s=uptime_s, metrics=metrics)
