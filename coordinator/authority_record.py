"""authority.json: what an authority has given to whom, and how its files are written."""

import os
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import StateError
from shared.files import atomic_write


class Issued(BaseModel):
    """One valid certificate, by its common name. serial: hexadecimal; until: when it ends; written: its files are."""

    model_config = ConfigDict(extra="forbid")
    role: str
    name: str
    serial: str
    until: datetime
    written: bool = False


class Revoked(BaseModel):
    """One certificate that is no longer valid."""

    model_config = ConfigDict(extra="forbid")
    user: str
    serial: str
    date: datetime


class Record(BaseModel):
    """authority.json. hosts: of the broker, the first is the one that everybody connects to; issued: by common name;
    barred: common names that may do nothing, whatever certificate they have; listed: date of the last CRL."""

    model_config = ConfigDict(extra="forbid")
    fleet: str
    hosts: list[str]
    port: int
    installed: str | None
    issued: dict[str, Issued] = {}
    revoked: list[Revoked] = []
    barred: list[str] = []
    lists: int = 0
    listed: datetime | None = None


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, and readable by its owner alone from its first byte on."""
    before = os.umask(0o077)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    finally:
        os.umask(before)


def load_record(path: Path) -> Record | None:
    """The record; None where there is none, StateError where it is damaged."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StateError(f"{path} cannot be read: take it back from a backup ({error.errors()[0]['msg']})") from error
