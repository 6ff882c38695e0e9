"""Files that are whole or absent, whatever kills the process or the power."""

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Return when the bytes of this file are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Return when the entries of this directory (what was created, renamed or removed in it) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, durably: a reader, or a restart after any failure, finds the old content or the new one.

    The temporary file `.{name}.tmp` lies beside it; one writer per path at a time. OSError where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
