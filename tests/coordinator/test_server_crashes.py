"""A whole coordinator that dies between two steps on the disk, over and over, while its devices go on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from crashes import Crash, Steps
from fleet import World, adding, running, tensors_of

from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal

Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(120)
CHANGES = {"a": 1.0, "b": 2.0, "c": 6.0}


async def run_with_crashes(world: World, patch: pytest.MonkeyPatch, at: int) -> int:
    """A run of two rounds; the coordinator dies before step `at` of each of its lives, every life a step longer than
    the last. How often it died."""
    deaths = 0
    devices = [world.device(name, adding(value)) for name, value in CHANGES.items()]
    async with running(*devices):
        while True:
            with patch.context() as inner, ThreadPoolExecutor() as threads:  # no thread outlives its coordinator
                asyncio.get_running_loop().set_default_executor(threads)
                Steps(inner, at + deaths, world.directory.path)
                try:
                    await world.coordinator().run()
                except Crash:
                    deaths += 1
                    continue
            return deaths


@pytest.mark.parametrize("at", [6, 11, 17, 24, 33])
async def test_every_update_counts_once(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    world = World(begin(count=2, quorum=3, min_devices=3), tmp_path)
    deaths = await run_with_crashes(world, monkeypatch, at)
    assert deaths > 0
    result = tensors_of(world.directory.global_payload(3))
    for name, array in world.initial.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(result[name], array + 2 * 3.0, rtol=1e-5)
    lines = list(read_journal(world.directory.journal_path))
    assert [(line["event"], line["round"]) for line in lines] == [("round", 1), ("round", 2), ("personalized", 3)]
    for line in lines[:2]:
        assert sorted(entry["device"] for entry in line["accepted"]) == ["a", "b", "c"]
    assert [entry["device"] for entry in lines[2]["devices"]] == ["a", "b", "c"]
