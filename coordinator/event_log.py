"""What happens in a run as log records: the narrator's words, with the event itself beside them."""

import logging
from typing import Any

from coordinator.narrator import line

TROUBLE = {"disconnected", "rejected", "failed", "abandoned", "warning", "quarantined"}
QUIET = {"accepted", "connected"}
"""What the narrator does not tell, and a log keeps."""

log = logging.getLogger("coordinator")


class EventLog:
    """Call it with one event of coordinator.server at a time."""

    def __init__(self) -> None:
        self._run: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "started":
            self._run = {"run": event["run"]}
        text = line(event) or (_quiet(event) if kind in QUIET else kind)
        known = self._run | {name: event[name] for name in ("device", "round") if name in event}
        log.log(logging.WARNING if kind in TROUBLE else logging.INFO, "%s", text, extra=known | {"event": event})


def _quiet(event: dict[str, Any]) -> str:
    if event["event"] == "accepted":
        return f"update of {event['device']} in round {event['round']}: {event['bytes']} bytes, {event['encoding']}"
    return "connected to the broker"
