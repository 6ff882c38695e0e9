"""`talaria-agent run`: one device, until it is told to stop."""

import asyncio
import logging
import signal
from pathlib import Path

import click

from edge_agent.agent import Agent
from shared.config import AgentConfig
from shared.link import Link, Will
from shared.memory import keep_freed_memory
from shared.mqtt import MqttLink
from shared.settings import load_agent_config

KEPT_BYTES = 16 << 20
"""Of the memory that transfers free: enough for the chunks that are under way."""


@click.command()
@click.option("--config", "-c", "config_path", type=click.Path(path_type=Path), help="TOML file of this device.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set device=kitchen")
@click.option("--once", is_flag=True, help="Exit when this device's report after the last round has its receipt.")
@click.option("--quiet", "-q", is_flag=True, help="Warnings only.")
def run(config_path: Path | None, sets: tuple[str, ...], once: bool, quiet: bool) -> None:
    """Serve as a device of a fleet until interrupted.

    Everything survives a restart at any time: what was trained and not yet delivered is offered again, and transfers go
    on where they stopped. SIGTERM and Ctrl-C stop it cleanly.
    """
    config = load_agent_config(config_path, sets).config
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    keep_freed_memory(KEPT_BYTES)
    asyncio.run(_serve(config, once))


async def _serve(config: AgentConfig, once: bool) -> None:
    def open_link(client_id: str, will: Will | None) -> Link:
        return MqttLink(config.broker, client_id, will)

    agent = Agent(config, open_link, once=once)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()
