"""`talaria-coordinator status`: how a run stands."""

import json
from pathlib import Path

import click

from coordinator.checkpoints import RunDirectory
from coordinator.options import JSON, RUN_DIR
from coordinator.status import describe_status, status_of


@click.command()
@RUN_DIR
@JSON
def status(run_dir: Path, as_json: bool) -> None:
    """How the run in RUN_DIR stands, also while it is running."""
    found = status_of(RunDirectory(run_dir))
    click.echo(json.dumps(found) if as_json else describe_status(found))
