"""`talaria-agent infer`: the model in service, on files, on folders, or on request over MQTT. Imports no torch."""

import asyncio
import importlib.util
import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from edge_agent import slots
from edge_agent.child import ask
from edge_agent.examples import read_examples
from edge_agent.infer_service import InService, serve
from edge_agent.inference import BATCH, Network, Predictions, latencies
from shared.config import AgentConfig
from shared.errors import ConfigError, ExportError
from shared.mqtt import MqttLink
from shared.profiles import Profile, load_profile
from shared.settings import load_agent_config
from shared.topics import Topics

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("inputs", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--config", "-c", "config_path", type=PATH, help="The agent's settings: state_dir, profile, broker.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("--state-dir", type=PATH, help="Where the agent keeps its state, instead of the setting.")
@click.option("--model", "model_path", type=PATH, help="An ONNX file, instead of the model in service.")
@click.option("--profile", "profile_name", help="Firmware profile, instead of the setting.")
@click.option("--listen", is_flag=True, help="Answer requests over MQTT until interrupted.")
@click.option("--bench", is_flag=True, help="Latency of one example, beside the dense ONNX model and eager torch.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def infer(
    inputs: tuple[Path, ...],
    config_path: Path | None,
    sets: tuple[str, ...],
    state_dir: Path | None,
    model_path: Path | None,
    profile_name: str | None,
    listen: bool,
    bench: bool,
    as_json: bool,
) -> None:
    """Run this device's own model.

    INPUTS are npz, npy or csv files, images, or folders of images; raw, as the data source has them: the model's file
    knows how to normalize them.

    \b
    talaria-agent infer --state-dir state photos/
    talaria-agent infer --model model.onnx digits.npz --json
    talaria-agent infer --state-dir state --bench
    talaria-agent infer --config agent.toml --listen
    """
    # Without a file of settings there is no device name; only --listen needs one.
    given = sets if config_path or any(each.startswith("device") for each in sets) or listen else ("device=_", *sets)
    config = load_agent_config(config_path, given).config
    profile = load_profile(profile_name or config.profile)
    models = (state_dir or config.state_dir) / "models"
    if listen:
        if inputs or bench or model_path:
            raise ConfigError("--listen serves the model in service: it takes no inputs, no --model and no --bench")
        _listen(config, InService(models, profile, threads=config.threads))
        return
    if not inputs and not bench:
        raise ConfigError("nothing to do: name files or folders, or use --bench or --listen")
    path = model_path or slots.in_service(models) / slots.MODEL
    network = Network(path, profile, threads=config.threads)
    report: dict[str, Any] = {"model": str(path), "card": network.card.model_dump(mode="json")}
    if inputs:
        report["predictions"] = [row for batch in _batches(inputs, network) for row in batch]
    if bench:
        report["latency_ms"] = benchmark(path, network, profile, config)
    click.echo(json.dumps(report, indent=2) if as_json else _table(report))


def _batches(inputs: tuple[Path, ...], network: Network) -> Iterator[list[dict[str, Any]]]:
    examples = read_examples(inputs, network.shape)
    while batch := list(itertools.islice(examples, BATCH)):
        found = network.predict(np.stack([example for _, example in batch]))
        yield [_row(name, index, found) for index, (name, _) in enumerate(batch)]


def _row(name: str, index: int, found: Predictions) -> dict[str, Any]:
    number = found.classes[index]
    return {
        "input": name,
        "label": found.labels[index],
        "class": number,
        "probability": float(found.probabilities[index, number]),
        "logits": [float(value) for value in found.logits[index]],
    }


def benchmark(path: Path, network: Network, profile: Profile, config: AgentConfig) -> dict[str, dict[str, float]]:
    """Percentiles of the model, and of what it would be without pruning and without ONNX, where that is at hand."""
    networks = {"onnx": network}
    template = path.with_name(slots.TEMPLATE)
    if template.is_file():
        networks["onnx dense"] = Network(template, profile, threads=config.threads)
    found = {name: each.json() for name, each in latencies(networks).items()}
    if path.with_name(slots.PERSONAL).is_file() and importlib.util.find_spec("torch"):
        threads = str(config.threads or profile.inference.threads)
        eager = ask("edge_agent.torch_export", "latency", str(path.parent), threads, *config.trust)
        found |= {"torch": eager["personal"], "torch dense": eager["dense"]}
    return found


def _table(report: dict[str, Any]) -> str:
    lines = []
    if rows := report.get("predictions"):
        width = max(len(row["input"]) for row in rows)
        wide = max(len("label"), *(len(row["label"]) for row in rows))
        lines.append(f"{'input':{width}}  {'label':{wide}}  probability")
        lines += [f"{row['input']:{width}}  {row['label']:{wide}}  {row['probability']:11.3f}" for row in rows]
    if latency := report.get("latency_ms"):
        lines += [""] if lines else []
        lines.append(f"{'ms per example':14}  {'p50':>8}  {'p95':>8}  {'p99':>8}")
        lines += [f"{name:14}  {ms['p50']:8.3f}  {ms['p95']:8.3f}  {ms['p99']:8.3f}" for name, ms in latency.items()]
    return "\n".join(lines)


def _listen(config: AgentConfig, models: InService) -> None:
    try:
        models.network()
    except ExportError as error:
        click.echo(f"no model yet: requests are answered with that until there is one ({error})", err=True)
    topics = Topics(config.fleet)

    async def run() -> None:
        serving = asyncio.current_task()
        assert serving is not None
        for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT is ignored by what a shell started in the background
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        link = MqttLink(config.broker, f"{config.device}-infer")
        await link.open()
        try:
            await link.subscribe(topics.infer(config.device))
            click.echo(f"listening on {topics.infer(config.device)}, answering on {topics.inferred(config.device)}")
            await serve(link, topics, config.device, models)
        finally:
            await link.close()

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        click.echo("stopped", err=True)
