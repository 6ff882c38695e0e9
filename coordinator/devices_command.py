"""`talaria-coordinator devices`: every device of a run, those that need somebody first."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType

from coordinator.checkpoints import RunDirectory
from coordinator.devices import rows_of
from coordinator.events import Phase
from coordinator.options import JSON, LIVE, RUN_DIR
from coordinator.status import status_of
from coordinator.tables import devices_table, headline, rows_that_fit, show_live
from shared.errors import ConfigError


@click.command()
@RUN_DIR
@LIVE
@JSON
def devices(run_dir: Path, live: bool, as_json: bool) -> None:
    """Every device of the run in RUN_DIR: its state, and why it is not asked; when it was seen last; the rounds that it
    answered of those that it was asked for; its bytes; what was refused or failed; how it fares, as it says itself.

    Those that need somebody come first. Bytes are since the start of the coordinator. All of it is read from the run's
    folder, so it works while the coordinator runs, and after it died.
    """
    directory = RunDirectory(run_dir)
    if live and as_json:
        raise ConfigError("--live is for people, --json for programs: leave one of them away")
    if as_json:
        survey, rows = rows_of(directory)
        about = {} if survey is None else {k: v for k, v in asdict(survey).items() if k != "devices"}
        click.echo(json.dumps(about | {"devices": [row.as_json() for row in rows]}))
        return

    def draw(console: Console) -> tuple[RenderableType, bool]:
        (survey, rows), status, now = rows_of(directory), status_of(directory), time.time()
        table = devices_table(rows, now, width=console.width, limit=rows_that_fit(console))
        return Group(headline(status, survey, rows, now), table), status["phase"] == Phase.FINISHED

    if live:
        show_live(draw)
    else:
        console = Console()
        console.print(draw(console)[0])
