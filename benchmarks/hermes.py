"""What Hermes pays and what it saves, beside methods that move the dense network, on real data.

    mnist, har, cifar  the fleets of benchmarks.algorithms

Everything runs in the fleet of `talaria-lab simulate`: the coordinator, agents and trainers that are deployed, the
link in memory. Per fleet all methods have the same devices, network, optimizer and seeds. In the first table all have
the same rounds. The second has what takes the fewest bytes to reach the accuracy that dense float32 FedAvg ends with;
for fewer rounds, each number of rounds is a run of its own, with its own personalization.

accuracy   of the devices' own models at the end, weighted by test examples: mean and deviation over the seeds; worst
           device: mean over the seeds. For `fedavg`, of the global model of the same run that is then fine-tuned
kept       parameters, as a share of the dense network's
MB         MQTT packets to and from the whole fleet in the rounds of one run, as the broker sees them
CPU        seconds of training on all devices in one of the last rounds (the masks are final), without evaluation

    TALARIA_DATA=FOLDER python -m benchmarks.hermes [mnist] [har] [cifar]

What was run below --directory is not run again, so that it can be interrupted.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.algorithms import PLAIN, SETTINGS
from benchmarks.common import RESULTS, ROOT, report
from lab.compare import Variant, compare
from lab.plots import accuracy_by_bytes
from lab.results import Result
from shared.config import AlgorithmSettings
from shared.evaluation import Spread
from shared.settings import load_run_config

KEEP = {"target": {"parameters": 0.25}}
PERSONALIZE = {"finetune_epochs": 10}
NO_EVALUATION = "rounds.evaluate_every=1000000"
LAST = 3
"""Rounds at the end whose CPU seconds count."""


@dataclass(frozen=True)
class Method:
    """label: in the tables; algorithm: its name; settings: beside the fleet's common ones; encoding: of payloads."""

    label: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "float32"


DENSE = Method("fedavg-finetune", "fedavg-finetune", PERSONALIZE)
METHODS = (
    DENSE,
    Method("fedper", "fedper"),
    Method("hermes all", "hermes", {**KEEP, "overlap": "all", "finetune_epochs": 0, "accuracy_threshold": 0.5}),
    Method("hermes any", "hermes", {**KEEP, "overlap": "any", "finetune_epochs": 0, "accuracy_threshold": 0.5}),
    Method("hermes, no own step", "hermes", {**KEEP, "personal_amount": 0.0, **PERSONALIZE}),
    Method("hermes", "hermes", {**KEEP, **PERSONALIZE}),
    Method("hermes int8", "hermes", {**KEEP, **PERSONALIZE}, "int8"),
    Method("hermes int8, at once", "hermes", {**KEEP, "pruning_amount": 1.0, **PERSONALIZE}, "int8"),
    Method("hermes topk", "hermes", {**KEEP, **PERSONALIZE}, "topk"),
)
FEWER = ("fedavg-finetune", "hermes int8", "hermes int8, at once", "hermes topk")
"""What is also run for fewer rounds."""
ROUNDS = (2, 5, 7, 10)


@dataclass(frozen=True)
class Point:
    """One method after some rounds: the means over its seeds, and the accuracies of all of them."""

    label: str
    rounds: int
    accuracies: tuple[float, ...]
    worst: float
    kept: float
    up: float
    down: float
    cpu_s: float

    @property
    def accuracy(self) -> float:
        return fmean(self.accuracies)

    @property
    def moved(self) -> float:
        """MB, both ways."""
        return self.up + self.down


def point(label: str, results: Sequence[Result], model: str = "accuracy") -> Point:
    """model: `accuracy` of the devices' own models, or `accuracy_global`."""
    spreads: list[Spread] = [result.summary.evaluation[model] for result in results]
    rounds = len(results[0].summary.rounds)
    return Point(
        label=label,
        rounds=rounds,
        accuracies=tuple(spread.weighted_mean for spread in spreads),
        worst=fmean(spread.worst for spread in spreads),
        kept=fmean(result.summary.share("parameters") or 1.0 for result in results) if model == "accuracy" else 1.0,
        up=fmean(result.bytes_up for result in results) / 1e6,
        down=fmean(result.bytes_down for result in results) / 1e6,
        cpu_s=fmean(
            cost.training_cpu_s for result in results for cost in result.costs if rounds - LAST < cost.round <= rounds
        ),
    )


def simulate(name: str, method: Method, rounds: int | None, seeds: Sequence[int], directory: Path) -> list[Result]:
    """The method in that fleet, for that many rounds (None: the fleet's own number)."""
    setting = SETTINGS[name]
    overrides = [*setting.overrides, NO_EVALUATION, f"transfer.encoding={method.encoding}"]
    if rounds is not None:
        overrides.append(f"rounds.count={rounds}")
    config = load_run_config(ROOT / "configs" / setting.config, overrides).config
    settings = {"name": method.algorithm, **PLAIN, **config.algorithm.hyperparameters, **method.settings}
    variant = Variant(method.label, AlgorithmSettings.model_validate(settings))
    began = time.monotonic()
    results = asyncio.run(compare(config, [variant], seeds, directory / name / f"{config.rounds.count}-rounds"))
    print(f"{name}: {method.label}, {config.rounds.count} rounds: {time.monotonic() - began:.0f} s", flush=True)
    return list(results)


def points(label: str, results: Sequence[Result]) -> Iterator[Point]:
    """The method, and FedAvg before it where the method is FedAvg but for what happens after the last round."""
    if label == DENSE.label:
        yield point("fedavg", results, "accuracy_global")
    yield point(label, results)


def row(each: Point, dense: Point) -> dict[str, object]:
    deviation = f" ± {pstdev(each.accuracies):.4f}" if len(each.accuracies) > 1 else ""
    return {
        "method": each.label,
        "rounds": each.rounds,
        "accuracy": f"{each.accuracy:.4f}{deviation}",
        "worst": f"{each.worst:.3f}",
        "kept": f"{each.kept:.1%}",
        "up, MB": f"{each.up:.2f}",
        "down, MB": f"{each.down:.2f}",
        "bytes, fedavg / this": f"{dense.moved / each.moved:.1f}",
        "CPU s/round": f"{each.cpu_s:.2f}",
    }


def run(
    name: str,
    methods: Sequence[Method],
    seeds: Sequence[int],
    fewer_rounds: Sequence[int],
    directory: Path,
    results: Path,
) -> None:
    """Both tables of one fleet, and its drawing."""
    full = [each for method in methods for each in points(method.label, simulate(name, method, None, seeds, directory))]
    dense = full[0]
    fewer = [
        each
        for method in methods
        if method.label in FEWER
        for rounds in fewer_rounds
        for each in points(method.label, simulate(name, method, rounds, seeds, directory))
    ]
    curves = {
        label: sorted((each.moved, each.accuracy) for each in (*fewer, *full) if each.label == label)
        for label in ("fedavg", *(method.label for method in methods if method.label in FEWER))
    }
    enough = [each for each in (*fewer, *full) if each.label in FEWER and each.accuracy >= dense.accuracy]
    cheapest = {each.label: each for each in sorted(enough, key=lambda each: -each.moved)}
    report(f"hermes-{name}", [row(each, dense) for each in full], directory=results, seeds=seeds)
    if cheapest:
        rows = [row(cheapest[label], dense) for label in FEWER if label in cheapest]
        report(f"hermes-{name}-same-accuracy", rows, directory=results, seeds=seeds, fedavg=dense.accuracy)
    drawing = accuracy_by_bytes(curves).replace("<svg ", '<svg style="background: white" ', 1)
    (results / f"hermes-{name}.svg").write_text(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=[*SETTINGS, []], help="all without one")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=[method.label for method in METHODS], help="all without it")
    parser.add_argument("--rounds", nargs="*", type=int, default=ROUNDS, help="fewer rounds that are also run")
    parser.add_argument("--directory", type=Path, default=Path("runs/hermes"), help="where the runs lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files and drawings")
    options = parser.parse_args()
    chosen = {DENSE.label, *(options.methods or (method.label for method in METHODS))}
    methods = [method for method in METHODS if method.label in chosen]
    for name in options.settings or SETTINGS:
        run(name, methods, options.seeds, options.rounds, options.directory, options.results)


if __name__ == "__main__":
    main()
