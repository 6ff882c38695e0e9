"""`talaria-agent upgrade`: another version into service, or back to the one before."""

from pathlib import Path

import click

from edge_agent.service import UNIT
from edge_agent.service_command import systemctl
from edge_agent.upgrade import Service, layout_here, roll_back
from edge_agent.upgrade import upgrade as put_into_service


@click.command()
@click.argument("wheel", type=click.Path(path_type=Path), required=False)
@click.option("--rollback", is_flag=True, help="Back to the version before.")
@click.option("--wait", "wait_s", type=float, default=120.0, show_default=True, help="Seconds it has to become well.")
def upgrade(wheel: Path | None, rollback: bool, wait_s: float) -> None:
    """Put the version of WHEEL into service, beside the one before, which comes back by itself if it does not work.

    A version gets into service if its `doctor` finds no problem on this device that the present one does not have
    (also a library that ends in an illegal instruction), and if its agent starts, stays, and reaches the broker where
    the present one did. What the device remembers is the same for all versions. Where packages come from is said to pip
    as always: PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX.

    Exit status: 0 it is in service, 1 it is not, and the version before is.
    """
    if (wheel is None) == (not rollback):
        raise click.UsageError("give a wheel, or --rollback")
    layout = layout_here()
    service = Service(
        stop=lambda: systemctl(layout, "stop", UNIT),
        restart=lambda: systemctl(layout, "restart", UNIT),
        finished=lambda: (
            set(systemctl(layout, "show", "-P", "ActiveState", "-P", "Result", UNIT).split()) == {"inactive", "success"}
        ),
    )
    if wheel is None:
        roll_back(layout, service, click.echo, wait_s=wait_s)
    else:
        put_into_service(layout, wheel, service, click.echo, wait_s=wait_s)
