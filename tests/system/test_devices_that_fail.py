"""Devices that vanish, freeze or run out of memory: the round goes on without them, and says why."""

import signal
import tomllib
from pathlib import Path

import pytest
from processes import System
from scripted_fleet import constant, device, expected_digest, running

from shared.toml import bundled

OTHERS = {"a": (0, 1), "b": (100, 10)}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_the_round_closes_without_a_device_that_vanished(system: System, how: signal.Signals) -> None:
    """The killed one is given up at once, for the broker tells its will; the frozen one at the deadline."""
    system.start_broker()
    frozen = how is signal.SIGSTOP
    coordinator = await system.coordinator(
        devices=3,
        exports=False,
        epochs=500,
        limits={"quorum": 2, "deadline_s": 6.0 if frozen else 90.0, "personalize_deadline_s": 1.0},
    )
    async with running(*(device(system, name, constant(*answer)) for name, answer in OTHERS.items())):
        phone = await system.agent("phone")
        await phone.says("round 1: train")
        phone.signal(how)
        closed = await coordinator.event("closed")
        finished = await coordinator.finished()
    assert closed["cohort"] == ["a", "b", "phone"]
    assert sorted(entry["device"] for entry in closed["accepted"]) == ["a", "b"]
    assert (closed["wall_s"] >= 6.0) is frozen
    digest = expected_digest(coordinator.run_dir / "globals/00002.payload", finished["run"], 1, list(OTHERS.values()))
    assert closed["digest"] == digest
    assert bool(coordinator.events("device", device="phone", online=False)) is not frozen


async def test_a_trainer_without_memory_is_a_failure_that_its_agent_reports_and_survives(system: System) -> None:
    system.start_broker()
    coordinator = await system.coordinator(devices=3, exports=False, limits={"quorum": 2})
    async with running(*(device(system, name, constant(*answer)) for name, answer in OTHERS.items())):
        phone = await system.agent("phone", profile=str(_tiny(system.folder)))
        failed = await coordinator.event("failed", device="phone", round=1)
        assert failed["code"] == "out_of_memory", failed["reason"]
        assert "training.memory_mib" in failed["reason"]
        closed = await coordinator.event("closed")
        finished = await coordinator.finished()
        assert phone.running
    assert sorted(entry["device"] for entry in closed["accepted"]) == ["a", "b"]
    assert {(entry["device"], entry["code"]) for entry in closed["failed"]} == {("phone", "out_of_memory")}
    assert (finished["reported"], finished["failed"]) == (["a", "b"], ["phone"])
    phone.signal(signal.SIGTERM)
    assert await phone.ended() == 0


def _tiny(folder: Path) -> Path:
    """A profile that leaves a trainer 4 MiB beyond its libraries: what a coordinator takes for enough, and is not."""
    text = bundled("firmware_profiles", "container").read_text()
    assert tomllib.loads(text)["training"]["memory_mib"] == 640
    path = folder / "tiny.toml"
    path.write_text(text.replace("memory_mib = 640", "memory_mib = 4").replace('id = "container"', 'id = "tiny"'))
    return path
