"""`talaria-lab simulate`: one simulation, or several side by side."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lab.compare import Variant, compare, simulate_measured, variants
from lab.fleet import emulated_devices
from lab.pool import TrainerPool
from lab.progress import SimulationProgress
from lab.results import Result
from shared.algorithms import ALGORITHMS, algorithm, hyperparameters
from shared.config import RunConfig
from shared.errors import ConfigError


def simulate_one(config: RunConfig, directory: Path, *, export: bool, as_json: bool) -> None:
    """Simulate the configuration, with everything of it in `directory`."""
    hyperparameters(algorithm(config.algorithm.name), config.algorithm.hyperparameters)  # wrong ones before any work
    console = Console(quiet=as_json, highlight=False)
    devices = emulated_devices(config, directory)
    pool = TrainerPool({device: agent.data for device, agent in devices.items()})
    name = config.algorithm.name
    with SimulationProgress(console) as progress:
        console.print(f"{name} on {config.data.source}: {len(devices)} devices, files in {directory}")
        progress.begin(name, config.rounds.count)

        def on_event(event: Mapping[str, Any]) -> None:
            progress(event)
            if as_json:
                click.echo(json.dumps(event))

        async def run() -> Result:
            async with pool:
                return await simulate_measured(config, directory, pool, on_event, label=name, export=export)

        result = asyncio.run(run())
    from lab.finish import finish_simulation  # plots take a second to import: nobody waits for it before the run

    finish_simulation(config, result, devices, pool.counts, pool.classes, console)
    if as_json:
        rows = [{"device": row.device, "examples": row.examples, **row.metrics} for row in result.summary.devices]
        summary = {"event": "summary", "devices": rows, "report": str(directory / "report.html")}
        click.echo(json.dumps({**summary, **_final(result)}))


def compare_all(
    config: RunConfig, directory: Path, algorithms: str | None, seeds: str | None, *, as_json: bool
) -> None:
    """Simulate every algorithm (names, separated by commas, or `all`) with every seed."""
    console = Console(quiet=as_json, highlight=False)
    chosen = variants(config, _names(algorithms) if algorithms else [config.algorithm.name])
    drawn = _seeds(seeds) if seeds else [config.run.seed]
    order = [(variant, seed) for variant in chosen for seed in drawn]
    with SimulationProgress(console) as progress:
        console.print(f"{len(order)} simulations of {config.fleet.devices} devices, files in {directory}")

        def on_progress(variant: Variant, seed: int, event: Mapping[str, Any]) -> None:
            if event["event"] == "started":
                place = order.index((variant, seed)) + 1
                progress.begin(f"{place}/{len(order)} {variant.label}, seed {seed}", config.rounds.count)
            progress(event)
            if as_json:
                click.echo(json.dumps({"label": variant.label, "seed": seed, **event}))

        results = asyncio.run(compare(config, chosen, drawn, directory, on_progress))
    from lab.finish import finish_comparison

    finish_comparison(config, directory, results, console)
    if as_json:
        rows = [_final(result) for result in results]
        click.echo(json.dumps({"event": "summary", "report": str(directory / "comparison.html"), "results": rows}))


def _final(result: Result) -> dict[str, Any]:
    """The last line of the result, without its kind."""
    *_, final = result.lines()
    return {name: value for name, value in final.items() if name != "kind"}


def _names(text: str) -> list[str]:
    if text == "all":
        return [each.name for each in ALGORITHMS]
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _seeds(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds {text!r} are not whole numbers: write for example --seeds 0,1,2") from None
