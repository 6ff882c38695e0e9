"""talaria-coordinator: the command line. What a command needs is imported when it is used, so help is quick."""

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.errors import ConfigError, TalariaError

if TYPE_CHECKING:
    from coordinator.chronicle import OnEvent
    from coordinator.export import Format
    from shared.config import RunConfig

STOPPED = 130
KEPT_BYTES = 256 << 20
"""Of the memory that transfers free: the chunks of many devices, and blocks as large as a tensor."""
PATH = click.Path(path_type=Path)
CONFIG = click.option("-c", "--config", type=PATH, help="TOML file of the run; without it, the defaults.")
SET = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set rounds.count=5")
JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
RUN_DIR = click.argument("run_dir", type=PATH)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="talaria")
def cli() -> None:
    """Opens rounds for a fleet of devices, folds their updates, keeps the global model.

    \b
    talaria-coordinator config show -c configs/production.toml
    talaria-coordinator run -c configs/production.toml
    talaria-coordinator status runs/20260101-120000-hermes
    talaria-coordinator export runs/20260101-120000-hermes -o model.onnx

    Exit status: 0 done, 1 the run failed, 2 a setting is wrong, 3 the broker cannot be used, 130 stopped from outside.
    """


@cli.command()
@CONFIG
@SET
@click.option("--run-dir", type=PATH, help="Folder of this run; a new one below run.directory without it.")
@click.option("--resume", type=PATH, metavar="RUN_DIR", help="Go on with the run in this folder, as it was configured.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines (coordinator.server lists them).")
def run(config: Path | None, sets: tuple[str, ...], run_dir: Path | None, resume: Path | None, as_json: bool) -> None:
    """Run to the end: rounds, then personalization on every device.

    Stopped or killed at any point, it goes on where it was with --resume, or with the same --run-dir: in the same
    round, with every update that was accepted. With --resume, --set may still change the broker and the transfer.
    """
    from coordinator.checkpoints import RunDirectory
    from shared.memory import keep_freed_memory
    from shared.settings import load_run_config

    if resume is not None:
        if config is not None or run_dir is not None:
            raise ConfigError("--resume takes the settings of the run itself: leave --config and --run-dir away")
        directory, settings = resume, override(RunDirectory(resume).record().config, sets)
    else:
        settings = load_run_config(config, sets).config
        directory = run_dir or settings.run.directory / time.strftime(f"%Y%m%d-%H%M%S-{settings.algorithm.name}")
    keep_freed_memory(KEPT_BYTES)
    try:
        if as_json:
            asyncio.run(_serve(settings, directory, _print_json))
        else:
            from rich.console import Console

            from coordinator.narrator import Narrator

            with Narrator(Console(), settings.rounds.count) as narrator:
                asyncio.run(_serve(settings, directory, narrator))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(f"stopped; go on with: talaria-coordinator run --resume {directory}", err=True)
        sys.exit(STOPPED)


@cli.command()
@RUN_DIR
@JSON
def status(run_dir: Path, as_json: bool) -> None:
    """How the run in RUN_DIR stands, also while it is running."""
    from coordinator.checkpoints import RunDirectory
    from coordinator.status import describe_status, status_of

    found = status_of(RunDirectory(run_dir))
    click.echo(json.dumps(found) if as_json else describe_status(found))


@cli.group()
def config() -> None:
    """Settings of a run."""


@config.command()
@CONFIG
@SET
@JSON
def show(config: Path | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Every effective setting, and where it comes from: the file, --set, or a default."""
    from shared.algorithms import algorithm, hyperparameters
    from shared.settings import explain, load_run_config

    loaded = load_run_config(config, sets)
    chosen = loaded.config.algorithm
    rows = explain(loaded, hyperparameters(algorithm(chosen.name), chosen.hyperparameters))
    if as_json:
        entries = [{"key": r.key, "value": r.value, "origin": r.origin, "description": r.description} for r in rows]
        click.echo(json.dumps(entries, default=str))
        return
    from shared.toml import toml_value

    shown = [(row.key, "" if row.value is None else toml_value(row.value), row.origin) for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for key, value, origin in shown:
        click.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


@cli.command()
@RUN_DIR
@click.option("-o", "--output", type=PATH, help="File to write; model.onnx or model.payload without it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "payload"]),
    default="onnx",
    show_default=True,
    help="ONNX to run it, or a payload that another run starts from (model.initial).",
)
@JSON
def export(run_dir: Path, output: Path | None, form: "Format", as_json: bool) -> None:
    """Write the global model of the run in RUN_DIR, after its last closed round."""
    from coordinator.checkpoints import RunDirectory
    from coordinator.export import export_model

    output = output or Path(f"model.{form}")
    closed, size = export_model(RunDirectory(run_dir), output, form)
    if as_json:
        click.echo(json.dumps({"round": closed, "bytes": size, "path": str(output)}))
    else:
        click.echo(f"{output}: the global model after round {closed}, {size} bytes")


def override(config: "RunConfig", sets: tuple[str, ...]) -> "RunConfig":
    """The settings of a run, with --set over its broker and transfer."""
    from shared.settings import load_run_config

    if odd := [text for text in sets if not text.startswith(("broker", "transfer."))]:
        raise ConfigError(f"--set {odd[0]!r}: a run that goes on can only change its broker and transfer")
    given = load_run_config(None, sets).config
    changed = {name: getattr(given, name) for name in ("broker", "transfer") if any(s.startswith(name) for s in sets)}
    return config.model_copy(update=changed)


async def _serve(settings: "RunConfig", directory: Path, on_event: "OnEvent") -> None:
    """Run the coordinator, with a broker of its own where the settings ask for one. SIGTERM stops it like Ctrl-C."""
    from contextlib import AsyncExitStack

    from coordinator.broker import EmbeddedBroker
    from coordinator.server import Coordinator
    from shared.config_base import BrokerSettings
    from shared.link import Link, Will
    from shared.mqtt import MqttLink

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        broker = settings.broker
        if broker.url == "embedded":
            embedded = await stack.enter_async_context(EmbeddedBroker(directory / "broker"))
            broker = BrokerSettings(url=embedded.url, keepalive_s=broker.keepalive_s)
            on_event({"event": "broker", "url": embedded.url})

        def open_link(client_id: str, will: Will | None) -> Link:
            return MqttLink(broker, client_id, will)

        await Coordinator(settings, open_link, run_dir=directory, on_event=on_event).run()


def _print_json(event: dict[str, object]) -> None:
    click.echo(json.dumps(event))


def main() -> None:
    """The command; a TalariaError ends it with its text and exit code, without a traceback."""
    try:
        cli()
    except TalariaError as error:
        click.echo(f"talaria-coordinator: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"talaria-coordinator: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
