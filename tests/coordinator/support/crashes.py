"""A process that dies between any two steps that change the disk."""

import os
from collections.abc import Callable
from typing import Any

import pytest

STEPS = ("replace", "fsync", "unlink", "truncate", "mkdir", "rmdir")


class Crash(BaseException):
    """kill -9: nothing catches it, and nothing that runs afterwards reaches the disk."""


class Steps:
    """Counts the steps; dies before step `at`, and lets no later one through until `restart`."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.at = at
        self.count = 0
        self.dead = False
        for name in STEPS:
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def restart(self) -> None:
        self.dead = False
        self.at = -1

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            self.dead = self.dead or self.count == self.at
            if self.dead:
                raise Crash(f"before step {self.count}")
            self.count += 1
            return original(*args, **kwargs)

        return step
