"""All algorithms side by side, on real data that differs from device to device: the tables of docs/results.md. Hermes
is in benchmarks.hermes.

    mnist  20 devices, Dirichlet 0.1, at most 20 training images of each class per device; fedavg_MNIST_lenet.toml
    har    46 phones and watches of 23 people, natural; windows split in time; fedavg_HAR_har1d.toml
    cifar  20 devices, Dirichlet 0.1, at most 50 training images of each class; fedavg_CIFAR10_lenet.toml

Each method runs in the fleet of `talaria-lab simulate` (coordinator, agents and trainers as they are deployed, the link
in memory) on the same data and with three seeds of initialization and training; every figure is the mean over the
seeds. Accuracies are those of the devices' own models after the last round, on test examples that decided nothing:
weighted by test examples, with the standard deviation over the seeds; `global` is that of a model with nothing of
the device in it; then over the devices the plain mean, the deviation, the tenth percentile and the worst one. MB:
payloads of the rounds of one run; CPU seconds: those of all its processes.

    TALARIA_DATA=FOLDER python -m benchmarks.algorithms [mnist] [har] [cifar]

What was run below --directory is not run again, so that it can be interrupted.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.common import RESULTS, ROOT, report
from lab.compare import Variant, compare
from lab.results import Result
from shared.config import AlgorithmSettings, RunConfig
from shared.evaluation import Spread
from shared.settings import load_run_config


@dataclass(frozen=True)
class Method:
    """label: in the tables; algorithm: its name; settings: what differs from the configuration's common ones."""

    label: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)


# Unless the configuration says otherwise: all have the same optimizer, whatever their authors' was.
PLAIN = {"momentum": 0.0, "weight_decay": 0.0}
METHODS = (
    Method("local", "local"),
    Method("fedavg", "fedavg"),
    Method("fedavg-finetune", "fedavg-finetune", {"finetune_epochs": 10}),
    Method("fedper", "fedper"),
    Method("fedrep", "fedrep", {"head_epochs": 1, "finetune_epochs": 0}),
    Method("fedbabu", "fedbabu", {"finetune_epochs": 10}),
    Method("lg-fedavg", "lg-fedavg"),
    Method("ditto", "ditto", {"proximal": 0.1}),
    Method("apfl", "apfl", {"alpha": 0.5, "alpha_update": "fixed", **PLAIN}),
    Method("per-fedavg FO", "per-fedavg", {"variant": "fo", **PLAIN}),
    Method("per-fedavg HF", "per-fedavg", {"variant": "hf", **PLAIN}),
)


@dataclass(frozen=True)
class Setting:
    """A fleet and its data: a configuration, and what the benchmark changes of it. alpha: Per-FedAvg's inner step."""

    config: str
    alpha: float
    overrides: tuple[str, ...] = ()


SETTINGS = {
    "mnist": Setting("fedavg_MNIST_lenet.toml", 0.05),
    "har": Setting("fedavg_HAR_har1d.toml", 0.01),
    "cifar": Setting("fedavg_CIFAR10_lenet.toml", 0.01, ("rounds.count=20", "algorithm.batch_size=20")),
}


def variant(config: RunConfig, method: Method, setting: Setting) -> Variant:
    """The configuration's own hyperparameters, the same for every method, and on top the method's."""
    settings = {"name": method.algorithm, **PLAIN, **config.algorithm.hyperparameters, **method.settings}
    if method.algorithm == "per-fedavg":
        settings["alpha"] = setting.alpha
    return Variant(method.label, AlgorithmSettings.model_validate(settings))


def run(
    name: str, methods: Sequence[Method], seeds: Sequence[int], directory: Path, rounds: int | None
) -> list[dict[str, object]]:
    """The rows of the table, one per method, of the seeds that did not diverge; those that do are told of."""
    setting = SETTINGS[name]
    overrides = ("rounds.evaluate_every=5", *setting.overrides, *([] if rounds is None else [f"rounds.count={rounds}"]))
    config = load_run_config(ROOT / "configs" / setting.config, overrides).config
    began = time.monotonic()

    def progress(variant: Variant, seed: int, event: Mapping[str, Any]) -> None:
        if event["event"] in ("finished", "given up"):
            why = event.get("reason", "done")
            print(f"{time.monotonic() - began:6.0f} s  {name}: {variant.label}, seed {seed}: {why}", flush=True)

    chosen = [variant(config, method, setting) for method in methods]
    results = asyncio.run(compare(config, chosen, seeds, directory / name, progress))
    found = [[result for result in results if result.label == method.label] for method in methods]
    return [row(each) for each in found if each]


def row(results: Sequence[Result]) -> dict[str, object]:
    """One method: the means over its seeds."""
    own = [result.summary.evaluation["accuracy"] for result in results]

    def mean(of: str) -> float:
        return fmean(getattr(spread, of) for spread in own)

    everybody: list[Spread] = [result.summary.evaluation["accuracy_global"] for result in results]
    weighted = [spread.weighted_mean for spread in own]
    return {
        "method": results[0].label,
        "seeds": len(results),
        "accuracy": f"{fmean(weighted):.4f}" + (f" ± {pstdev(weighted):.4f}" if len(weighted) > 1 else ""),
        "global": f"{fmean(spread.weighted_mean for spread in everybody):.4f}",
        "mean": f"{mean('mean'):.4f}",
        "deviation": f"{mean('deviation'):.3f}",
        "p10": f"{mean('p10'):.3f}",
        "worst": f"{mean('worst'):.3f}",
        "up, MB": f"{fmean(result.bytes_up for result in results) / 1e6:.2f}",
        "down, MB": f"{fmean(result.bytes_down for result in results) / 1e6:.2f}",
        "CPU s/round": f"{fmean(result.cpu_s_per_round for result in results):.2f}",
        "wall s": f"{fmean(result.wall_s for result in results):.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=[*SETTINGS, []], help="all without one")
    parser.add_argument("--methods", nargs="+", choices=[method.label for method in METHODS], help="all without it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, help="in place of the configuration's, for a quick look")
    parser.add_argument("--directory", type=Path, default=Path("runs/algorithms"), help="where the runs lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    options = parser.parse_args()
    methods = [method for method in METHODS if options.methods is None or method.label in options.methods]
    for name in options.settings or SETTINGS:
        rows = run(name, methods, options.seeds, options.directory, options.rounds)
        report(f"algorithms-{name}", rows, directory=options.results, seeds=options.seeds)


if __name__ == "__main__":
    main()
