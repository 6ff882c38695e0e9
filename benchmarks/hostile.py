"""How well a fleet learns when a fifth of its devices lie: MNIST, 20 devices, non-IID (Dirichlet 0.1, at most 20
training images of each class; fedavg_MNIST_lenet.toml, ten rounds), of which four are hostile in every round.

    nobody      all are honest
    sign flip   what training changed is sent with the other sign, three times as far
    noise       Gaussian noise in its place, ten times as far
    label flip  trained on class 9 - c in place of c

Each rule runs in the fleet of `talaria-lab simulate`: coordinator, agents and trainers as they are deployed, the link
in memory. `mean, bounded`: the mean, with admission.max_norm = 3, and quarantine after three refused updates in a row.

global  accuracy of the global tensors on the test images of the honest devices
own     accuracy of the honest devices' own models: FedAvg + fine-tuning for five epochs, FedRep (the head stays local)

Both weighted by test images, the mean over the seeds; 0 where the run could not go on, as every device's loss was NaN.
FedRep has no global head, so no `global`.

    TALARIA_DATA=FOLDER python -m benchmarks.hostile [fedavg-finetune] [fedrep]

What was run below --directory is not run again, so that it can be interrupted.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import RESULTS, ROOT, report
from coordinator.checkpoints import RunDirectory
from coordinator.quarantine import Ward
from lab.attacks import ATTACKS, with_liars
from lab.fleet import emulated_devices
from lab.pool import TrainerPool
from lab.simulate import simulate
from shared.config import AlgorithmSettings, RunConfig
from shared.config_rounds import AdmissionSettings, AggregationSettings
from shared.errors import TrainingError
from shared.evaluation import accuracy_spread
from shared.settings import load_run_config

CONFIG = "fedavg_MNIST_lenet.toml"
NOBODY = "nobody"
EVERY = 5
"""One in so many devices lies."""
ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    "fedavg-finetune": {"finetune_epochs": 5},
    "fedrep": {"head_epochs": 1, "finetune_epochs": 0},
}


@dataclass(frozen=True)
class Rule:
    """label: in the tables; aggregation, admission: its settings."""

    label: str
    aggregation: Mapping[str, Any] = field(default_factory=dict)
    admission: Mapping[str, Any] = field(default_factory=dict)


RULES = (
    Rule("mean"),
    Rule("trimmed mean", {"rule": "trimmed-mean", "trim": 0.2}),
    Rule("median", {"rule": "median"}),
    Rule("clipped mean", {"rule": "clipped-mean"}),
    Rule("mean, bounded", admission={"max_norm": 3.0, "quarantine_after": 3}),
)


def configured(algorithm: str, rule: Rule, seed: int, rounds: int) -> RunConfig:
    """The run of an algorithm under a rule."""
    overrides = ["rounds.evaluate_every=1000000", "rounds.quorum=10", f"run.seed={seed}", f"rounds.count={rounds}"]
    config = load_run_config(ROOT / "configs" / CONFIG, overrides).config
    settings = {**config.algorithm.hyperparameters, **ALGORITHMS[algorithm], "name": algorithm}
    return config.model_copy(
        update={
            "algorithm": AlgorithmSettings.model_validate(settings),
            "aggregation": AggregationSettings.model_validate(rule.aggregation),
            "admission": AdmissionSettings.model_validate(rule.admission),
        }
    )


async def run(algorithm: str, rules: Sequence[Rule], seeds: Sequence[int], directory: Path, rounds: int) -> None:
    """Every rule under every attack, in `directory`/ALGORITHM/RULE/ATTACK/seed-N."""
    devices = emulated_devices(configured(algorithm, RULES[0], 0, rounds), directory)
    async with TrainerPool({device: agent.data for device, agent in devices.items()}) as pool:
        for rule in rules:
            for attack in (NOBODY, *ATTACKS):
                for seed in seeds:
                    folder = place(directory, algorithm, rule, attack, seed)
                    began = time.monotonic()
                    work = pool if attack == NOBODY else with_liars(pool, liars(devices), ATTACKS[attack])
                    config = configured(algorithm, rule, seed, rounds)
                    with contextlib.suppress(TrainingError):  # every honest device's loss is NaN: see `row`
                        await simulate(config, folder, work, lambda _: None)
                    took = time.monotonic() - began
                    print(f"{algorithm}, {rule.label}, {attack}, seed {seed}: {took:.0f} s", flush=True)


def place(directory: Path, algorithm: str, rule: Rule, attack: str, seed: int) -> Path:
    return directory / algorithm / rule.label.replace(", ", "-") / attack.replace(" ", "-") / f"seed-{seed}"


def liars(devices: Mapping[str, object]) -> frozenset[str]:
    return frozenset(sorted(devices)[::EVERY])


def row(algorithm: str, rule: Rule, seeds: Sequence[int], directory: Path) -> dict[str, object]:
    """One line of the table: accuracies of the honest under every attack, and who was caught."""
    cells: dict[str, object] = {"algorithm": algorithm, "rule": rule.label}
    for attack in (NOBODY, *ATTACKS):
        found: dict[str, list[float]] = {"accuracy": [], "accuracy_global": []}
        caught = []
        for seed in seeds:
            run = RunDirectory(place(directory, algorithm, rule, attack, seed))
            lying = liars(dict.fromkeys(emulated_devices(run.record().config, run.path)))
            honest = {device: report.metrics for device, report in run.reports().items() if device not in lying}
            for name, values in found.items():
                spread = accuracy_spread(honest, name)
                values.append(spread.weighted_mean if spread else 0.0)
            caught.append(f"{len(Ward(run.path).devices() & lying)}+{len(Ward(run.path).devices() - lying)}")
        if algorithm != "fedrep":
            cells[f"{attack}: global"] = fmean(found["accuracy_global"])
        cells[f"{attack}: own"] = fmean(found["accuracy"])
        if rule.admission:
            cells[f"{attack}: quarantined"] = ", ".join(caught)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", metavar="ALGORITHM", help=f"{', '.join(ALGORITHMS)}; all without any")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--directory", type=Path, default=Path("runs/hostile"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    algorithms = arguments.algorithms or list(ALGORITHMS)
    for algorithm in algorithms:
        asyncio.run(run(algorithm, RULES, seeds, arguments.directory, arguments.rounds))
    columns = (
        "algorithm",
        "rule",
        *(f"{a}: {m}" for a in (NOBODY, *ATTACKS) for m in ("global", "own")),
        "quarantined",
    )
    rows = []
    for algorithm in algorithms:
        for rule in RULES:
            cells = row(algorithm, rule, seeds, arguments.directory)
            quarantined = {attack: cells.get(f"{attack}: quarantined", "-") for attack in (NOBODY, *ATTACKS)}
            cells["quarantined"] = "; ".join(f"{attack} {text}" for attack, text in quarantined.items() if text != "-")
            rows.append({column: cells.get(column, "") for column in columns})
    report("hostile", rows, directory=arguments.results, seeds=len(seeds), hostile=f"one in {EVERY}")


if __name__ == "__main__":
    main()
