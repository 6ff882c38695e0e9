"""What a run came to, read from its journal: one row per device, one point per round. Pure; no plots, no printing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from shared.errors import StateError
from shared.evaluation import Spread


@dataclass(frozen=True)
class DeviceSummary:
    """One device at the end of a run.

    rounds         rounds in which its update was accepted
    metrics        what it reported after personalization (accuracies, parameters, MACs, bytes, latencies)
    """

    device: str
    examples: int
    rounds: int
    metrics: Mapping[str, float]

    @property
    def model_bytes(self) -> int:
        """All parameters in float32: what dense FedAvg moves per round and direction."""
        return int(4 * self.metrics.get("parameters_dense", 0))

    @property
    def dense_up(self) -> int:
        """Bytes that dense float32 FedAvg would have sent up for the same rounds."""
        return self.rounds * self.model_bytes

    @property
    def dense_down(self) -> int:
        """The same, down: a model per round, and the final one."""
        return (self.rounds + 1) * self.model_bytes

    def share(self, name: str) -> float | None:
        """`name` as a share of `name_dense`, for example of the parameters; None where either was not reported."""
        own, dense = self.metrics.get(name), self.metrics.get(f"{name}_dense")
        return own / dense if own is not None and dense else None


@dataclass(frozen=True)
class RoundPoint:
    """One closed round: accuracies of the devices' own models before training and their spread over the fleet, the
    share of the channels that their updates held, and the bytes of the packets in which it moved payloads."""

    number: int
    evaluation: Mapping[str, Spread]
    accuracy: Mapping[str, float]
    accuracy_global: Mapping[str, float]
    kept: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    wall_s: float


@dataclass(frozen=True)
class RunSummary:
    """evaluation: the spread of each accuracy over the fleet after personalization."""

    rounds: tuple[RoundPoint, ...]
    devices: tuple[DeviceSummary, ...]
    evaluation: Mapping[str, Spread] = field(default_factory=dict)
    absent: tuple[str, ...] = field(default=())
    """Devices that took part but never reported after personalization."""

    def mean(self, name: str) -> float | None:
        """Plain mean of a metric over the devices that reported it."""
        values = [row.metrics[name] for row in self.devices if name in row.metrics]
        return fmean(values) if values else None

    def share(self, name: str) -> float | None:
        """Plain mean over the devices of `name` as a share of the dense model's; None where nobody reported both."""
        shares = [share for row in self.devices if (share := row.share(name)) is not None]
        return fmean(shares) if shares else None


NOBODY: Mapping[str, Any] = {"devices": [], "evaluation": {}}
"""The personalization of a run that did not come so far."""


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The journal's entries, in order. StateError names the line that is not one."""
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise StateError(f"{path}, line {number}: not a journal entry ({error.msg})") from error
    return entries


def summarize(journal: list[dict[str, Any]]) -> RunSummary:
    """Fold a journal into a summary."""
    rounds = [entry for entry in journal if entry["event"] == "round"]
    personalized = next((entry for entry in journal if entry["event"] == "personalized"), NOBODY)
    reports = {entry["device"]: entry for entry in personalized["devices"]}
    accepted = {device: 0 for entry in rounds for device in entry["cohort"]}
    for entry in rounds:
        for update in entry["accepted"]:
            accepted[update["device"]] = accepted.get(update["device"], 0) + 1
    return RunSummary(
        rounds=tuple(_point(entry) for entry in rounds),
        devices=tuple(
            DeviceSummary(
                device=device,
                examples=reports[device]["examples"],
                rounds=accepted.get(device, 0),
                metrics=reports[device]["metrics"],
            )
            for device in sorted(reports)
        ),
        evaluation=_spreads(personalized),
        absent=tuple(sorted(set(accepted) - set(reports))),
    )


def _spreads(entry: Mapping[str, Any]) -> dict[str, Spread]:
    return {name: Spread(**fields) for name, fields in entry["evaluation"].items()}


def _point(entry: Mapping[str, Any]) -> RoundPoint:
    def metric(name: str) -> dict[str, float]:
        return {update["device"]: update["metrics"][name] for update in entry["accepted"] if name in update["metrics"]}

    return RoundPoint(
        number=entry["round"],
        evaluation=_spreads(entry),
        accuracy=metric("accuracy"),
        accuracy_global=metric("accuracy_global"),
        kept={update["device"]: update["kept"] for update in entry["accepted"]},
        bytes_up=entry["bytes_up"],
        bytes_down=entry["bytes_down"],
        wall_s=entry["wall_s"],
    )
