"""Several algorithms on one fleet: the same data, the same split, the same seeds, the same trainers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lab.fleet import emulated_devices
from lab.pool import TrainerPool
from lab.results import COSTS, RESULTS, Meter, Result, write_results
from lab.simulate import simulate
from shared.algorithms import algorithm, hyperparameters
from shared.config import AlgorithmSettings, RunConfig
from shared.errors import ConfigError, TrainingError
from shared.messages import Hyperparameter


@dataclass(frozen=True)
class Variant:
    """One algorithm with its hyperparameters, by the name that it has in the results."""

    label: str
    algorithm: AlgorithmSettings


OnProgress = Callable[[Variant, int, Mapping[str, Any]], None]
"""Told of every event (coordinator.server) of the simulation of a variant with a seed, and of one more: `given up`,
with the `reason`, where it cannot come to its end."""


def variants(config: RunConfig, names: Sequence[str]) -> tuple[Variant, ...]:
    """The algorithms of these names, each with those hyperparameters of the configuration that it knows and takes
    (Per-FedAvg, for example, takes no momentum).

    ConfigError for a name that is none, for a value that the configuration's own algorithm does not take, and for a
    hyperparameter that no algorithm here knows.
    """
    given, own = config.algorithm.hyperparameters, algorithm(config.algorithm.name)
    settled = own.hyperparameters.model_fields.keys() & given.keys()
    hyperparameters(own, {key: given[key] for key in settled})
    taken = {name: {key: value for key, value in given.items() if _takes(name, key, value)} for name in names}
    if strange := given.keys() - settled.union(*taken.values()):
        raise ConfigError(f"no algorithm here takes algorithm.{', algorithm.'.join(sorted(strange))}")
    return tuple(Variant(name, AlgorithmSettings.model_validate({"name": name, **taken[name]})) for name in names)


def _takes(name: str, key: str, value: Hyperparameter) -> bool:
    try:
        hyperparameters(algorithm(name), {key: value})
    except ConfigError:
        return False
    return True


async def compare(
    config: RunConfig,
    chosen: Sequence[Variant],
    seeds: Sequence[int],
    directory: Path,
    on_progress: OnProgress = lambda variant, seed, event: None,
) -> tuple[Result, ...]:
    """Simulate every variant with every seed (of initialization, cohorts and training; the data are divided as the
    configuration says), one after the other, in `directory`/LABEL/seed-N, and write `directory`/results.jsonl.

    What was begun there goes on, and what was finished is not done again. A simulation that cannot come to its end is
    told to `on_progress` and has no result; TrainingError where none can.
    ConfigError where a variant's settings make no algorithm, before anything runs; else as lab.simulate and lab.pool.
    """
    places: dict[str, str] = {}
    for variant in chosen:
        hyperparameters(algorithm(variant.algorithm.name), variant.algorithm.hyperparameters)
        place = re.sub(r"[^A-Za-z0-9._-]+", "-", variant.label)
        if (other := places.setdefault(place, variant.label)) is not variant.label:
            raise ConfigError(
                f"the variants {other!r} and {variant.label!r} would share the folder {place}: rename one"
            )
    results, reason = [], ""
    data = {device: agent.data for device, agent in emulated_devices(config, directory).items()}
    async with TrainerPool(data) as pool:
        for place, variant in zip(places, chosen, strict=True):
            for seed in seeds:
                settings = config.model_copy(
                    update={"algorithm": variant.algorithm, "run": config.run.model_copy(update={"seed": seed})}
                )
                folder = directory / place / f"seed-{seed}"
                tell = partial(on_progress, variant, seed)
                try:
                    results.append(await simulate_measured(settings, folder, pool, tell, label=variant.label))
                except TrainingError as error:
                    reason = str(error)
                    tell({"event": "given up", "reason": reason})
    if not results:
        raise TrainingError(reason)
    write_results(directory / RESULTS, results)
    return tuple(results)


async def simulate_measured(
    config: RunConfig,
    directory: Path,
    pool: TrainerPool,
    on_event: Callable[[Mapping[str, Any]], None],
    *,
    label: str,
    export: bool = False,
) -> Result:
    """One simulation with its costs and results beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    meter = Meter(directory / COSTS, label, config.run.seed, pool)

    def follow(event: Mapping[str, Any]) -> None:
        meter(event)
        on_event(event)

    await simulate(config, directory, pool, follow, export=export)
    result = Result.read(label, config.run.seed, directory)
    write_results(directory / RESULTS, [result])
    return result
