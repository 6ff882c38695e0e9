"""`talaria-coordinator enrol`: makes what a fleet proves itself with, and shows what there is."""

import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click

from coordinator.acl import Role
from coordinator.authority import DAYS, RESERVED, SIGNING, Authority
from coordinator.options import PATH
from shared.errors import ConfigError

AUTHORITY = click.option(
    "--authority",
    "folder",
    type=PATH,
    required=True,
    help="Folder of the authority. Back it up, and keep it to yourself.",
)
ROLE = click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.DEVICE.value,
    show_default=True,
    help="What NAMES are: listener is `talaria-agent infer --listen` beside an agent, client asks for inference, "
    "observer reads everything and writes nothing.",
)
HOST = r"[A-Za-z0-9.-]+|[0-9a-fA-F.:]+"
"""A name, or an address."""
RELOAD = "then have the broker read it: kill -HUP its process (systemctl reload mosquitto)"


@click.command()
@click.argument("names", nargs=-1)
@AUTHORITY
@click.option("--fleet", help="Name of the fleet, at the first use.")
@click.option(
    "--host",
    help="Names and addresses of the broker, with commas in between, at the first use; devices connect to the first, "
    "which may end in :PORT.",
)
@click.option(
    "--installed", metavar="DIR", help="Where each machine will keep its folder, as /etc/talaria; else it is used here."
)
@click.option("--days", type=click.IntRange(1, 7300), default=DAYS, show_default=True, help="Validity of certificates.")
@ROLE
@click.option(
    "--renew",
    is_flag=True,
    help="New keys for NAMES, also for `broker`, `coordinator`, `signing`; the old are revoked.",
)
def enrol(
    names: tuple[str, ...],
    folder: Path,
    fleet: str | None,
    host: str | None,
    installed: str | None,
    days: int,
    role: str,
    renew: bool,
) -> None:
    """Make an authority for a fleet, and enrol NAMES with it; without NAMES, list who is enrolled.

    The first use makes the authority, the broker's and the coordinator's folder. Who is enrolled stays as it is.

    \b
    talaria-coordinator enrol --authority keys --fleet plant --host broker.example,10.0.0.5 --installed /etc/talaria
    talaria-coordinator enrol --authority keys kitchen hall cellar
    talaria-coordinator enrol --authority keys --role observer alice
    talaria-coordinator enrol --authority keys --renew kitchen
    """
    hosts, port = _hosts(host) if host else (None, None)
    if renew and not names:
        raise ConfigError(f"--renew: name who gets a new key, for example kitchen or {', '.join(RESERVED)}")
    with Authority.open(folder, fleet=fleet, hosts=hosts, port=port, installed=installed, days=days) as authority:
        before = authority.record.lists
        for name in names:
            place = authority.renew(Role(role), name) if renew else authority.enrol(Role(role), name)
            click.echo(f"{name}: {place}")
            if renew and name == SIGNING:
                _explain_signing(authority)
        if not names:
            _list(authority)
        if authority.record.lists > before and (renew or role != Role.DEVICE):
            click.echo(f"{authority.place('broker')} has changed: give the broker acl and crl.pem, {RELOAD}")
        for issued in authority.ending():
            what = "ended" if issued.until < datetime.now(UTC) else "ends"
            who = issued.name if issued.role in (*RESERVED, Role.DEVICE) else f"--role {issued.role} {issued.name}"
            click.echo(f"the certificate of {who} {what} on {issued.until:%Y-%m-%d}: enrol --renew {who}", err=True)


def _hosts(text: str) -> tuple[list[str], int]:
    """`broker.example:8884,10.0.0.5` -> names, and the port that everybody connects to."""
    first, *aliases = [each.strip() for each in text.split(",")]
    try:
        parts = urlsplit(f"//{first}")
        name, port = parts.hostname, parts.port or 8883
    except ValueError as error:
        raise ConfigError(f"--host {first!r}: {error}") from error
    if not name or parts.path or not all(re.fullmatch(HOST, each) for each in [name, *aliases]):
        raise ConfigError(f"--host {text!r} is not NAME[:PORT][,NAME...]: write for example broker.example,10.0.0.5")
    return [name, *aliases], port


def _list(authority: Authority) -> None:
    record = authority.record
    click.echo(f"fleet {record.fleet}, broker {record.hosts[0]}:{record.port}, {authority.place()}")
    for user, issued in sorted(record.issued.items()):
        click.echo(f"{user:<32} {issued.role:<12} until {issued.until:%Y-%m-%d}")
    for user in sorted(record.barred):
        click.echo(f"{user:<32} revoked")


def _explain_signing(authority: Authority) -> None:
    click.echo(
        "devices do not know the new key yet: give each of them its coordinator.pub and start its agent again. Then "
        "move new-signing.key over signing.key on the coordinator's machine and start it again. At last take the first "
        f"line out of {authority.place('coordinator.pub')} and out of the devices' copies"
    )
