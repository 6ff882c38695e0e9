"""`talaria-coordinator release`: the end of a device's quarantine."""

from pathlib import Path

import click

from coordinator.checkpoints import RunDirectory
from coordinator.options import RUN_DIR
from coordinator.quarantine import Ward


@click.command()
@RUN_DIR
@click.argument("device")
def release(run_dir: Path, device: str) -> None:
    """Let DEVICE take part in the run in RUN_DIR again, also while it is running.

    `talaria-coordinator status RUN_DIR` says who is in quarantine and why. The coordinator asks the device again from
    the next round on; what went wrong with it before is forgiven.
    """
    RunDirectory(run_dir).record()
    Ward(run_dir).release(device)
    click.echo(f"{device} is released")
