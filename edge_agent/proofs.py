"""What this device proves itself with, and what it takes as proof: looked at before it fails. For `doctor`."""

import fcntl
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from cryptography import x509

from shared.config import AgentConfig
from shared.config_base import loopback, served_host
from shared.credentials import tls_context
from shared.errors import ConfigError
from shared.seal import read_public_keys

SOON = timedelta(days=30)

Verdict: TypeAlias = tuple[Literal["ok", "warning", "problem"], str]


def look_at_proofs(config: AgentConfig, now: datetime | None = None) -> Iterator[Verdict]:
    """One verdict per file, and per protection that is missing. `now`: for tests."""
    now = now or datetime.now(UTC)
    broker = config.broker
    away = not loopback(served_host(broker.url))
    if away and not broker.url.startswith("mqtts:"):
        yield "warning", f"{broker.url} is not encrypted: whoever is on the way can read and change everything"
    try:
        tls_context(broker)
    except ConfigError as error:
        yield "problem", str(error)
        return
    for path in (broker.ca_file, broker.cert_file):
        if path is not None:
            yield _certificate(path, now)
    if broker.key_file is not None and broker.key_file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield "warning", f"{broker.key_file} can be read by others: chmod 600 {broker.key_file}"
    if config.coordinator_key is not None:
        try:
            yield "ok", f"{len(read_public_keys(config.coordinator_key))} keys of coordinators are believed"
        except ConfigError as error:
            yield "problem", str(error)
    elif away:
        yield "warning", "coordinator_key is not set: whoever may write at the broker can give this device tasks"


def running(state_dir: Path) -> bool:
    """Whether an agent has this state open. It then has the one connection that its certificate is good for."""
    try:
        lock = os.open(state_dir / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _certificate(path: Path, now: datetime) -> Verdict:
    try:
        made = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        return "problem", f"{path} holds no certificate: {error}"
    until = f"{path} is valid until {made.not_valid_after_utc:%Y-%m-%d}"
    if made.not_valid_before_utc > now:
        return "problem", f"{path} is not yet valid: the clock of this machine says {now:%Y-%m-%d %H:%M} UTC; set it"
    if made.not_valid_after_utc < now:
        return "problem", f"{until}: talaria-coordinator enrol --renew makes another"
    if made.not_valid_after_utc < now + SOON:
        return "warning", f"{until}: talaria-coordinator enrol --renew makes another"
    return "ok", until
