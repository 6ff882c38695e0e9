"""`talaria-coordinator revoke`: who lost its key, or was never to be trusted, is let in no more."""

from pathlib import Path

import click

from coordinator.acl import Role
from coordinator.authority import Authority
from coordinator.enrol_command import AUTHORITY, RELOAD, ROLE


@click.command()
@click.argument("names", nargs=-1, required=True)
@AUTHORITY
@ROLE
def revoke(names: tuple[str, ...], folder: Path, role: str) -> None:
    """Revoke the certificates of NAMES, and bar them from every topic.

    The broker has to be told: it reads crl.pem and acl again on SIGHUP. Then no new connection is made with these
    certificates, and one that is open can neither write nor read.
    """
    with Authority.open(folder) as authority:
        for name in names:
            authority.revoke(Role(role), name)
            click.echo(f"{name}: revoked")
        broker = authority.place("broker")
        click.echo(f"give the broker {broker / 'acl'} and {broker / 'crl.pem'}, {RELOAD}")
