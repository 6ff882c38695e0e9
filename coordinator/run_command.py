"""`talaria-coordinator run`: one run, to its end or until it is stopped."""

import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from coordinator.broker import EmbeddedBroker
from coordinator.checkpoints import RunDirectory
from coordinator.chronicle import OnEvent
from coordinator.event_log import EventLog
from coordinator.narrator import Narrator
from coordinator.options import CONFIG, PATH, SET
from coordinator.server import Coordinator
from shared.commands import LOG_FILE, LOG_FORMAT
from shared.config import RunConfig
from shared.config_base import BrokerSettings
from shared.errors import ConfigError
from shared.link import Link, Will
from shared.logs import LogFormat, logged
from shared.memory import keep_freed_memory
from shared.mqtt import MqttLink
from shared.settings import load_run_config, override
from shared.supervisor import keep_posted

STOPPED = 130
KEPT_BYTES = 256 << 20
"""Of the memory that transfers free: the chunks of many devices, and blocks as large as a tensor."""


@click.command()
@CONFIG
@SET
@click.option("--run-dir", type=PATH, help="Folder of this run; a new one below run.directory without it.")
@click.option("--resume", type=PATH, metavar="RUN_DIR", help="Go on with the run in this folder, as it was configured.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines (coordinator.server lists them).")
@LOG_FORMAT
@LOG_FILE
def run(
    config: Path | None,
    sets: tuple[str, ...],
    run_dir: Path | None,
    resume: Path | None,
    as_json: bool,
    log_format: LogFormat | None,
    log_file: Path | None,
) -> None:
    """Run to the end: rounds, then personalization on every device.

    Stopped or killed at any point, it goes on where it was with --resume, or with the same --run-dir: in the same
    round, with every update that was accepted. With --resume, --set may still change the broker, the transfer and
    run.http.

    What happens is told on stdout, for people or with --json for programs. With --log-format it is logged on stderr
    instead, with --log-file in that file as well.
    """
    if resume is not None:
        if config is not None or run_dir is not None:
            raise ConfigError("--resume takes the settings of the run itself: leave --config and --run-dir away")
        directory, settings = resume, resumed(RunDirectory(resume).record().config, sets)
    else:
        settings = load_run_config(config, sets).config
        directory = run_dir or settings.run.directory / time.strftime(f"%Y%m%d-%H%M%S-{settings.algorithm.name}")
    keep_freed_memory(KEPT_BYTES)
    listeners: list[OnEvent] = [EventLog()] if log_format or log_file else []
    if as_json:
        listeners.append(_print_json)

    def on_event(event: dict[str, Any]) -> None:
        for listen in listeners:
            listen(event)

    try:
        with logged(log_format or "text", log_file), ExitStack() as stack:
            if not as_json and (log_file or not log_format):
                listeners.append(stack.enter_context(Narrator(Console(), settings.rounds.count)))
            asyncio.run(_serve(settings, directory, on_event))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(f"stopped; go on with: talaria-coordinator run --resume {directory}", err=True)
        sys.exit(STOPPED)


def resumed(config: RunConfig, sets: tuple[str, ...]) -> RunConfig:
    """The settings of a run, with --set over its broker, its transfer, its admission and its run.http."""
    if odd := [text for text in sets if not text.startswith(("broker", "transfer.", "admission.", "run.http="))]:
        can = "broker, transfer and admission, and run.http"
        raise ConfigError(f"--set {odd[0]!r}: a run that goes on can only change its {can}")
    return override(config, sets)


async def _serve(settings: RunConfig, directory: Path, on_event: OnEvent) -> None:
    """Run the coordinator, with a broker of its own where the settings ask for one. SIGTERM stops it like Ctrl-C."""
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

        posting = asyncio.create_task(keep_posted(lambda: f"the run in {directory}"))
        stack.callback(posting.cancel)
        await Coordinator(settings, open_link, run_dir=directory, on_event=on_event).run()


def _print_json(event: dict[str, object]) -> None:
    click.echo(json.dumps(event))
