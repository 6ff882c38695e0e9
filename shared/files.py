"""Files that are whole or absent, whatever kills the process or the power."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_wait = ContextVar("wait", default=True)


@contextmanager
def not_waiting_for_the_disk() -> Iterator[None]:
    """In here, and in the tasks and threads that asyncio starts from here, nothing waits until the disk has it: what is
    written survives a kill of the process, and not a loss of power. For simulations, which can be begun again."""
    token = _wait.set(False)
    try:
        yield
    finally:
        _wait.reset(token)


def sync_file(path: Path) -> None:
    """Return when the bytes of this file are on the disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Return when the entries of this directory (what was created, renamed or removed in it) are on the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, durably: a reader, or a restart after any failure, finds the old content or the new one.

    The temporary file `.{name}.tmp` lies beside it; one writer per path at a time. OSError where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _sync(path: Path, flags: int) -> None:
    if _wait.get():
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
