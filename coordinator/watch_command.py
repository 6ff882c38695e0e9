"""`talaria-coordinator watch`: what a fleet and its coordinator say, decoded as it passes by."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from coordinator.acl import COORDINATOR
from coordinator.options import CONFIG, JSON, PATH, SET
from coordinator.tables import size
from coordinator.watch import KINDS, QUIET_S, Seen, Watcher
from shared.config import RunConfig
from shared.config_base import BrokerSettings
from shared.errors import ConfigError
from shared.link import Connected, Disconnected, Received
from shared.mqtt import MqttLink
from shared.seal import Verifier, read_public_keys
from shared.settings import load_run_config
from shared.topics import Topics, check_name


@click.command()
@CONFIG
@SET
@click.option("--device", help="Only what this device says and is told.")
@click.option("--kind", "kinds", metavar="KIND,...", help=f"Only these: {', '.join(KINDS)}.")
@click.option("--key", type=PATH, help="Public keys of the coordinator (coordinator.pub), to check what it signs.")
@JSON
def watch(
    config: Path | None, sets: tuple[str, ...], device: str | None, kinds: str | None, key: Path | None, as_json: bool
) -> None:
    """Show what a fleet and its coordinator say to each other, one line per message, until Ctrl-C.

    It writes nothing, and the broker keeps nothing for it. Of the settings it takes run.fleet, the broker and, to check
    signatures, run.signing_key. A broker with ACLs lets it see what its certificate may read: everything with one that
    `talaria-coordinator enrol` made for an observer, with the settings beside it, broker.toml. All payloads pass by
    here, too, unless --kind leaves `blob` out.
    """
    settings = load_run_config(config, sets).config
    if settings.broker.url == "embedded":
        raise ConfigError(
            "the embedded broker gets another port at every start: take the address that `run` printed, "
            "--set broker.url=mqtt://127.0.0.1:PORT"
        )
    _check_certificate(settings.broker)
    chosen = _kinds(kinds)
    if device is not None:
        check_name("device", device)
    watcher = Watcher(Topics(settings.run.fleet), chosen, device, _verifier(settings, key))
    show = _print_json if as_json else _print
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(settings, watcher, show))


def _check_certificate(broker: BrokerSettings) -> None:
    """A broker has one place for each certificate of ours: with the coordinator's own we would throw it off."""
    if broker.cert_file is None:
        return
    try:
        certificate = x509.load_pem_x509_certificate(broker.cert_file.read_bytes())
    except (OSError, ValueError):
        return  # the link says what is wrong with it
    if COORDINATOR in [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]:
        raise ConfigError(
            f"broker.cert_file {str(broker.cert_file)!r} is the coordinator's own: with it `watch` would throw the "
            "coordinator off the broker. Make yourself a certificate with `talaria-coordinator enrol --role observer "
            "NAME`, and watch with its broker.toml"
        )


def _kinds(kinds: str | None) -> list[str]:
    chosen = [] if kinds is None else [kind.strip() for kind in kinds.split(",")]
    if odd := [kind for kind in chosen if kind not in KINDS]:
        raise ConfigError(f"--kind {odd[0]!r} is none of {', '.join(KINDS)}")
    return chosen


def _verifier(settings: RunConfig, key: Path | None) -> Verifier | None:
    if key is not None:
        return Verifier(read_public_keys(key))
    path = settings.run.signing_key
    if path is None:
        return None
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot use the signing key {str(path)!r}: {error}; or give --key coordinator.pub"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"the signing key {str(path)!r} is not Ed25519: `talaria-coordinator enrol` makes one")
    return Verifier([private.public_key()])


async def _watch(settings: RunConfig, watcher: Watcher, show: Callable[[Iterable[Seen]], None]) -> None:
    link = MqttLink(settings.broker, f"{settings.run.fleet}-watch-{secrets.token_hex(4)}", lasting=False)
    await link.open()
    resting = asyncio.create_task(_rest(watcher, show))
    subscribing = asyncio.create_task(link.subscribe(*watcher.filters()))
    try:
        while True:
            match await link.receive():
                case Received() as received:
                    show(watcher.see(received, time.time()))
                case Connected():
                    click.echo(f"connected to {settings.broker.url}", err=True)
                case Disconnected(reason):
                    click.echo(f"no connection: {reason}", err=True)
    finally:
        resting.cancel()
        subscribing.cancel()
        await link.close()


async def _rest(watcher: Watcher, show: Callable[[Iterable[Seen]], None]) -> None:
    while True:
        await asyncio.sleep(QUIET_S)
        show(watcher.rest(time.time()))


def _print(lines: Iterable[Seen]) -> None:
    for seen in lines:
        at = datetime.fromtimestamp(seen.at, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        marks = "".join(f" [{mark}]" for mark in (seen.seal, "retained" * seen.retained) if mark)
        who = seen.device or "-"
        click.echo(f"{at} {who:<16} {seen.kind:<11} {size(seen.bytes):>8}{marks} {seen.text}")


def _print_json(lines: Iterable[Seen]) -> None:
    for seen in lines:
        click.echo(json.dumps(asdict(seen), default=str))
