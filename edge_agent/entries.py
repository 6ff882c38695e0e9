"""Small records on the device's disk, each under its own digest: what is torn or rotten is never believed."""

import hashlib
import logging
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

log = logging.getLogger(__name__)


class Entry(BaseModel):
    """A record that is written whole and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


E = TypeVar("E", bound=Entry)


def sealed(entry: Entry) -> bytes:
    """JSON under its own SHA-256."""
    body = entry.model_dump_json().encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def read_entry(path: Path, kind: type[E]) -> E | None:
    """What `sealed` made; None where it is absent or damaged, and a warning for the latter."""
    try:
        seal, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        if hashlib.sha256(body).hexdigest().encode() != seal:
            raise ValueError("its digest is not that of its content")
        return kind.model_validate_json(body)
    except (ValueError, ValidationError) as error:
        log.warning("%s is damaged and not used: %s", path, error)
        return None
