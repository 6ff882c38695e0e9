"""What a simulation came to, in two files of JSON lines: results.jsonl, the same bytes for the same settings, and
costs.jsonl, which no two runs have alike.

results.jsonl, per round, per device and once at the end; the accuracies as shared.evaluation.Spread
{"kind": "round", "label", "seed", "round", "updates", "accuracy", "accuracy_global", "bytes_up", "bytes_down"}
{"kind": "device", "label", "seed", "device", "examples", "rounds", "metrics"}
{"kind": "final", "label", "seed", "rounds", "accuracy", "accuracy_global", "parameters", "bytes_up", "bytes_down"}

accuracy    of the devices' own models: in a round before its training, at the end after personalization
parameters  share of the dense model's that the devices keep, their mean
bytes       of the packets in which devices were sent their downloads, and sent their updates, as a broker counts them
            (shared.link.packet_size); those of the personalization are not in it

costs.jsonl
{"label", "seed", "round", "wall_s", "training_cpu_s", "system_cpu_s"}

round         0: everything before the first one; the one after the last: the personalization
training_cpu  seconds of the trainers: training and evaluation; system_cpu: of coordinator and agents
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.pool import TrainerPool
from lab.summary import RunSummary, read_journal, summarize

RESULTS, COSTS = "results.jsonl", "costs.jsonl"
MEASURED = ("latency_", "bytes_")
"""Metrics of a device that depend on how busy the machine is: they begin with these."""


@dataclass(frozen=True)
class Cost:
    """What one round took; see above."""

    round: int
    wall_s: float
    training_cpu_s: float
    system_cpu_s: float


@dataclass(frozen=True)
class Result:
    """One simulation that came to its end: of the algorithm `label` with that seed. costs: by round."""

    label: str
    seed: int
    directory: Path
    summary: RunSummary
    costs: tuple[Cost, ...]

    @classmethod
    def read(cls, label: str, seed: int, directory: Path) -> "Result":
        """From the folder of the run. StateError where its journal cannot be read."""
        costs = {}
        for line in (directory / COSTS).read_text().splitlines():
            fields = json.loads(line)
            cost = Cost(**{name: fields[name] for name in Cost.__dataclass_fields__})
            costs[cost.round] = cost
        summary = summarize(read_journal(directory / "journal.jsonl"))
        return cls(label, seed, directory, summary, tuple(costs[number] for number in sorted(costs)))

    @property
    def bytes_up(self) -> int:
        return sum(point.bytes_up for point in self.summary.rounds)

    @property
    def bytes_down(self) -> int:
        return sum(point.bytes_down for point in self.summary.rounds)

    @property
    def wall_s(self) -> float:
        return sum(cost.wall_s for cost in self.costs)

    @property
    def cpu_s(self) -> float:
        return sum(cost.training_cpu_s + cost.system_cpu_s for cost in self.costs)

    @property
    def cpu_s_per_round(self) -> float:
        """Of all processes, in the rounds alone: neither start nor personalization counts."""
        rounds = [cost for cost in self.costs if 1 <= cost.round <= len(self.summary.rounds)]
        return sum(cost.training_cpu_s + cost.system_cpu_s for cost in rounds) / max(1, len(rounds))

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of results.jsonl."""
        key = {"label": self.label, "seed": self.seed}
        for point in self.summary.rounds:
            yield {
                "kind": "round",
                **key,
                "round": point.number,
                "updates": len(point.kept),
                **{name: asdict(spread) for name, spread in point.evaluation.items()},
                "bytes_up": point.bytes_up,
                "bytes_down": point.bytes_down,
            }
        for row in self.summary.devices:
            metrics = {name: row.metrics[name] for name in sorted(row.metrics) if not name.startswith(MEASURED)}
            yield {"kind": "device", **key, "device": row.device, "examples": row.examples, "rounds": row.rounds} | {
                "metrics": metrics
            }
        yield {
            "kind": "final",
            **key,
            "rounds": len(self.summary.rounds),
            **{name: asdict(spread) for name, spread in self.summary.evaluation.items()},
            "parameters": self.summary.share("parameters"),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


class Meter:
    """Follows the events of one simulation and writes its costs, round by round, as they come."""

    def __init__(self, path: Path, label: str, seed: int, pool: TrainerPool) -> None:
        self._path, self._key, self._pool = path, {"label": label, "seed": seed}, pool
        self._last = self._now()
        path.touch()

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "opened" if event["round"] == 1 and event["attempt"] == 1:
                self._lap(0)
            case "closed":
                self._lap(event["round"])
            case "personalizing":
                self._personalization = event["round"]
            case "finished":
                self._lap(self._personalization)

    def _now(self) -> tuple[float, float, float]:
        return time.monotonic(), self._pool.cpu_s, time.process_time()

    def _lap(self, number: int) -> None:
        before, self._last = self._last, self._now()
        cost = Cost(number, *(round(now - then, 3) for now, then in zip(self._last, before, strict=True)))
        with self._path.open("a") as file:
            file.write(json.dumps({**self._key, **asdict(cost)}) + "\n")


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results.jsonl of these simulations, one after the other."""
    path.write_text("".join(json.dumps(line) + "\n" for result in results for line in result.lines()))
