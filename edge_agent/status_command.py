"""`talaria-agent status`: what the agent on this machine does, by its own word."""

import json
from pathlib import Path

import click

from edge_agent.pulse import ask


@click.command()
@click.option(
    "--state-dir", type=click.Path(path_type=Path), default=Path("talaria-state"), show_default=True, help="Its state."
)
@click.option("--timeout", "timeout_s", type=float, default=5.0, show_default=True, help="Seconds for the answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(state_dir: Path, timeout_s: float, as_json: bool) -> None:
    """Ask the running agent how it is.

    Exit status: 0 it answers, connected to its broker or not, 1 it does not run or hangs.
    """
    facts = ask(state_dir, timeout_s)
    if as_json:
        click.echo(json.dumps(facts))
        return
    link = "connected" if facts["connected"] else "without its broker"
    click.echo(f"{facts['device']}: {facts['phase']}, {link}, version {facts['version']}, process {facts['pid']}")
    if not facts["healthy"]:
        click.echo(f"it does not train now: {facts['reason']}")
