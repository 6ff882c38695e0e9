"""Bytes as a script of events, the states that a script reaches, and a folder for targets that need files."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WIDTH = 6
"""Bytes of an event: all have as many, so that a mutation of one event leaves those after it as they are."""

mark: Callable[[Hashable], object] = lambda state: None  # noqa: E731 (the fuzzer puts its own in this place)


def reached(*state: object) -> None:
    """Tell the fuzzer in what state a machine is: an input that leads to a new one is worth as much to it as one that
    runs new lines."""
    mark(state)


class Script:
    """Bytes, read as choices; where they end, every further choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, end: int) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] % end if at < len(self._data) else 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]


def events(data: bytes, most: int) -> Iterator[Script]:
    """Each event as a script of its own; no more than `most`."""
    return (Script(data[at : at + WIDTH]) for at in range(0, min(len(data), most * WIDTH), WIDTH))


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
    empty(folder)
    return folder


def empty(folder: Path) -> None:
    """Remove the files in it; it has no folders in it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            os.unlink(entry.path)
