"""`talaria-coordinator status`: how a run stands."""

import json
import time
from pathlib import Path

import click
from rich.console import Group, RenderableType

from coordinator.checkpoints import RunDirectory
from coordinator.devices import rows_of
from coordinator.events import Phase
from coordinator.options import JSON, LIVE, RUN_DIR
from coordinator.status import describe_status, status_of
from coordinator.tables import headline, rounds_table, show_live
from shared.errors import ConfigError


@click.command()
@RUN_DIR
@LIVE
@JSON
def status(run_dir: Path, live: bool, as_json: bool) -> None:
    """How the run in RUN_DIR stands, also while it is running: phase, round, what was closed. --live shows it as a
    table that keeps up, until the run is finished."""
    directory = RunDirectory(run_dir)
    if live and as_json:
        raise ConfigError("--live is for people, --json for programs: leave one of them away")
    if live:
        show_live(lambda console: _draw(directory))
        return
    found = status_of(directory)
    click.echo(json.dumps(found) if as_json else describe_status(found))


def _draw(directory: RunDirectory) -> tuple[RenderableType, bool]:
    found = status_of(directory)
    survey, rows = rows_of(directory)
    return Group(headline(found, survey, rows, time.time()), rounds_table(found)), found["phase"] == Phase.FINISHED
