"""`talaria-agent run`: one device, until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import Any

import click

from edge_agent.agent import Agent
from edge_agent.pulse import supervised
from shared.commands import LOG_FILE, LOG_FORMAT
from shared.config import AgentConfig
from shared.link import Link, Will
from shared.logs import LogFormat, logged
from shared.memory import keep_freed_memory
from shared.mqtt import MqttLink
from shared.settings import load_agent_config

KEPT_BYTES = 16 << 20
"""Of the memory that transfers free: enough for the chunks that are under way."""

log = logging.getLogger(__name__)


@click.command()
@click.option("--config", "-c", "config_path", type=click.Path(path_type=Path), help="TOML file of this device.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set device=kitchen")
@click.option("--once", is_flag=True, help="Exit when this device's report after the last round has its receipt.")
@click.option(
    "--until-idle",
    is_flag=True,
    help="Exit when there is nothing to do: for timers that start the agent, or wake the machine, again.",
)
@click.option("--quiet", "-q", is_flag=True, help="Warnings only.")
@LOG_FORMAT
@LOG_FILE
def run(
    config_path: Path | None,
    sets: tuple[str, ...],
    once: bool,
    until_idle: bool,
    quiet: bool,
    log_format: LogFormat | None,
    log_file: Path | None,
) -> None:
    """Serve as a device of a fleet until interrupted.

    Everything survives a restart at any time: what was trained and not yet delivered is offered again, and transfers go
    on where they stopped. SIGTERM and Ctrl-C stop it cleanly.

    With wakes_every_s the device lies down whenever there is nothing to do, says when it will be back, and sleeps in
    this process, or, with --until-idle, exits.
    """
    config = load_agent_config(config_path, sets).config
    keep_freed_memory(KEPT_BYTES)
    with logged(log_format or "text", log_file, quiet=quiet, device=config.device):
        asyncio.run(_serve(config, once=once, until_idle=until_idle))


async def _serve(config: AgentConfig, *, once: bool, until_idle: bool) -> None:
    """One agent after the other: to wake up is to start, and whatever a restart survives, sleep does."""

    def open_link(client_id: str, will: Will | None) -> Link:
        return MqttLink(config.broker, client_id, will)

    def start() -> Agent:
        agent = Agent(config, open_link, once=once, until_idle=until_idle)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _stop, agent, stopped)
        return agent

    def facts() -> dict[str, Any]:
        return agent.facts() | ({"phase": "asleep", "connected": False} if asleep else {})

    stopped = asyncio.Event()
    agent, asleep = start(), False
    async with supervised(config.state_dir, facts):
        while not stopped.is_set():
            await agent.run()
            if agent.asleep_s is not None:
                log.info("nothing to do: asleep for %.0f s", agent.asleep_s)
            if agent.asleep_s is None or until_idle:
                return
            asleep = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(agent.asleep_s):
                    await stopped.wait()
                    return
            agent, asleep = start(), False


def _stop(agent: Agent, stopped: asyncio.Event) -> None:
    stopped.set()
    agent.stop()
