"""Who is asked: capability first, then fairness, then a seeded draw."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from shared.messages import Capabilities

TRAINING_COPIES = 4
"""Weights, gradients, what was received and what is sent: what a trainer needs at least, in sizes of the model."""
SMALLEST_WIDTH = 1 / 8
"""Share of the channels that a device may start with where networks shrink: of the weights, that is its square."""
SMALLEST_PACKET = 4096
"""Devices that take less are not asked: the payload would have to be cut to their measure for the whole fleet."""


@dataclass(frozen=True)
class Needs:
    """What taking part in this run asks of a device.

    memory_mib  what a trainer must at least be allowed to use
    packet      bytes of the smallest packet limit that is still served
    """

    memory_mib: int = 0
    packet: int = 0

    @classmethod
    def of(cls, limit: int, *, prunes: bool) -> Self:
        """Of a run whose updates take `limit` bytes at most, of the dense network. Where the algorithm prunes, a device
        may start with less: it then needs one dense copy, to cut its own from, and trains the smallest."""
        copies = 1 + TRAINING_COPIES * SMALLEST_WIDTH**2 if prunes else TRAINING_COPIES
        return cls(memory_mib=int(copies * limit) // 2**20, packet=SMALLEST_PACKET)


def unfit(capabilities: Capabilities | None, needs: Needs) -> str:
    """Why a device cannot be asked; empty where it can. What it does not say does not count against it."""
    if capabilities is None:
        return ""
    if not capabilities.train:
        return capabilities.reason or "does not train"
    if 0 < capabilities.memory_mib < needs.memory_mib:
        return f"may use {capabilities.memory_mib} MiB for training, the model needs {needs.memory_mib} MiB"
    if capabilities.max_packet < needs.packet:
        return f"takes packets of {capabilities.max_packet} bytes, at least {needs.packet} are needed"
    return ""


@dataclass(frozen=True)
class Turns:
    """How often a device was asked in this run, and in which round last (0: never)."""

    count: int = 0
    last: int = 0


def select(
    candidates: Iterable[str],
    size: int | None,
    *,
    turns: Mapping[str, Turns],
    failures: Mapping[str, int],
    draw: random.Random,
) -> tuple[str, ...]:
    """At most `size` of the candidates (None: all), sorted by name.

    Those that did not fail in this round come first, then those that were asked least often, then those whose turn is
    longest ago; `draw` decides among equals, the same for the same seed whatever the order of the candidates.
    """
    shuffled = sorted(candidates)
    draw.shuffle(shuffled)

    def rank(device: str) -> tuple[int, int, int]:
        turn = turns.get(device, Turns())
        return failures.get(device, 0), turn.count, turn.last

    return tuple(sorted(sorted(shuffled, key=rank)[:size]))
