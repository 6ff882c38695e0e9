"""Bytes as a script of events, and a folder for targets that need files."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Script:
    """Bytes, read as choices; where they end, every further choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def below(self, end: int) -> int:
        return self.take(1)[0] % end if self else 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]


@cache
def _folder() -> Path:
    """In memory where the machine has such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="talaria-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def clean_folder() -> Path:
    """Empty, and the same each time."""
    folder = _folder()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
