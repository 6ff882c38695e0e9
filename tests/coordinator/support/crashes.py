"""A process that dies between any two steps that change the disk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = ("replace", "fsync", "unlink", "truncate", "mkdir", "rmdir")


class Crash(BaseException):
    """kill -9: nothing catches it, and nothing that runs afterwards reaches the disk."""


class Steps:
    """Counts the steps below `folder`; dies before step `at`, and lets no later one through."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, folder: Path) -> None:
        self.at = at
        self.folder = str(folder)
        self.count = 0
        self.dead = False
        for name in STEPS:
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(target: Any, *args: Any, **kwargs: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
            if not path.startswith(self.folder):
                return original(target, *args, **kwargs)
            self.dead = self.dead or self.count == self.at
            if self.dead:
                raise Crash(f"before step {self.count}")
            self.count += 1
            return original(target, *args, **kwargs)

        return step
