"""`talaria-coordinator audit`: whether the journal of a run tells the truth."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from coordinator.audit import audit_run
from coordinator.checkpoints import RunDirectory
from coordinator.options import JSON, RUN_DIR


@click.command()
@RUN_DIR
@JSON
def audit(run_dir: Path, as_json: bool) -> None:
    """Compute every closed round of the run in RUN_DIR again from the kept updates, and compare it with the journal.

    The run must have been started with --set run.keep_updates=true. Exit status: 0 everything is, bit for bit, as the
    journal says, 1 something is not, or nothing was kept.
    """
    found = audit_run(RunDirectory(run_dir))
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        for fault in found.faults:
            click.echo(fault)
        if found.unkept:
            rounds = ", ".join(map(str, found.unkept))
            click.echo(f"nothing was kept of round {rounds}: start runs with --set run.keep_updates=true")
        click.echo(f"{found.rounds} rounds came out again, bit for bit; {found.updates} updates looked at")
    if found.faults or (found.unkept and not found.rounds):
        raise click.exceptions.Exit(1)
