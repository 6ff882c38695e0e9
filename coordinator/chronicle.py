"""What happens in a run, told twice: to the live view as it happens, to the journal when a round closes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from coordinator.fleet import Fleet
from coordinator.journal import Line
from shared.evaluation import accuracy_spread
from shared.messages import Report

OnEvent = Callable[[dict[str, Any]], None]

ACCURACIES = ("accuracy", "accuracy_global")
"""The metrics that are summed up over the devices, when a round closes and at the end."""


@dataclass
class _Round:
    """What the journal will say of the open round."""

    since: float
    payload_bytes: int = 0
    cohort: set[str] = field(default_factory=set)
    accepted: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    rejected: dict[tuple[str, str], str] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


class Chronicle:
    """Events are dicts; `coordinator.server` documents them."""

    def __init__(self, on_event: OnEvent, fleet: Fleet, clock: Callable[[], float]) -> None:
        self._on_event = on_event
        self._fleet = fleet
        self._clock = clock
        self._round = _Round(clock())

    def tell(self, event: str, **fields: Any) -> None:
        self._on_event({"event": event, **fields})

    def begin(self, payload_bytes: int = 0) -> None:
        """What happens now belongs to a new round, or the personalization; `payload_bytes`: of its largest payload up
        to now."""
        self._round = _Round(self._clock(), payload_bytes)

    def opened(self) -> None:
        """The round is open, and its time counts from now."""
        self._round.since = self._clock()

    def asked(self, cohort: Iterable[str]) -> None:
        """These devices take part in the round."""
        self._round.cohort.update(cohort)

    def given(self, device: str, size: int, packets: int) -> None:
        """The device is told to fetch a payload of `size` bytes, `packets` bytes as the broker sends them."""
        self._round.payload_bytes = max(self._round.payload_bytes, size)
        self.sent(device, packets)

    def resumed(self, cohort: Iterable[str], entries: dict[str, dict[str, Any]]) -> None:
        """What a restart knows of the round."""
        self._round.cohort.update(cohort, (entry["device"] for entry in entries.values()))
        self._round.accepted.update({(entry["device"], entry["start"]): entry for entry in entries.values()})

    def sent(self, device: str, size: int) -> None:
        """Packets of `size` bytes together, with chunks for this device."""
        self._fleet[device].bytes_down += size
        self._round.bytes_down += size

    def received(self, device: str, size: int) -> None:
        """A packet of `size` bytes, with a chunk of this device's update."""
        self._fleet[device].bytes_up += size
        self._round.bytes_up += size

    def accepted(self, entry: dict[str, Any], number: int) -> None:
        self._fleet[entry["device"]].accepted += 1
        self._round.accepted[entry["device"], entry["start"]] = entry
        self.tell("accepted", round=number, **entry)

    def rejected(self, device: str, code: str, reason: str) -> None:
        """Told once per device, code and round: who repeats itself is counted, and fills neither log nor journal."""
        self._fleet[device].rejected[code] += 1
        if (device, code) not in self._round.rejected:
            self._round.rejected[device, code] = reason
            self.tell("rejected", device=device, code=code, reason=reason)

    def failed(self, device: str, number: int, code: str, reason: str) -> None:
        self._fleet[device].failed[code] += 1
        self._round.failed[device, code] = reason
        self.tell("failed", device=device, round=number, code=code, reason=reason)

    def exposed(self, number: int, share: float) -> None:
        """Aggregate.exposed of a round."""
        if share:
            what = f"{share:.0%} of the coordinates come from so few updates that aggregation.rule bears no liar there"
            self.tell("warning", text=f"round {number}: {what}; ask more devices")

    def why(self, device: str, code: str) -> str:
        """The reason that was given in this round for this code; empty if there was none."""
        return self._round.rejected.get((device, code)) or self._round.failed.get((device, code), "")

    def closed(self, number: int, attempts: int, digest: str) -> Line:
        """The journal's line of the round; `digest`: of the payload that it ended with."""
        happened = self._round
        return {
            "event": "round",
            "round": number,
            "attempts": attempts,
            "cohort": sorted(happened.cohort),
            "accepted": [entry for _, entry in sorted(happened.accepted.items())],
            "evaluation": _evaluation(  # of two of a device, what it said last
                {device: entry["metrics"] for (device, _), entry in sorted(happened.accepted.items())}
            ),
            **self._trouble(),
            "wall_s": round(self._clock() - happened.since, 3),
            "bytes_down": happened.bytes_down,
            "bytes_up": happened.bytes_up,
            "payload_bytes": happened.payload_bytes,
            "digest": digest,
        }

    def personalized(self, number: int, reports: dict[str, Report], absent: Iterable[str], digest: str) -> Line:
        """The journal's last line."""
        return {
            "event": "personalized",
            "round": number,
            "devices": [
                {"device": device, "examples": report.examples, "metrics": report.metrics}
                for device, report in reports.items()
            ],
            "absent": list(absent),
            "evaluation": _evaluation({device: report.metrics for device, report in reports.items()}),
            **self._trouble(),
            "wall_s": round(self._clock() - self._round.since, 3),
            "digest": digest,
        }

    def _trouble(self) -> dict[str, list[dict[str, str]]]:
        def entries(happened: dict[tuple[str, str], str]) -> list[dict[str, str]]:
            return [{"device": d, "code": code, "reason": reason} for (d, code), reason in happened.items()]

        return {"rejected": entries(self._round.rejected), "failed": entries(self._round.failed)}


def _evaluation(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The spread of each accuracy that any of these devices told of, by its name."""
    spreads = {name: accuracy_spread(metrics, name) for name in ACCURACIES}
    return {name: asdict(spread) for name, spread in spreads.items() if spread is not None}
