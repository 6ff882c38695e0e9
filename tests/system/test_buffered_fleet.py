"""Buffered rounds as programs over a real broker: the coordinator is killed at random points, and a slow device's
update, begun rounds ago, counts once."""

import asyncio
import random

import numpy as np
from fake_device import Train
from processes import System
from scripted_fleet import device, running

from coordinator.checkpoints import RunDirectory
from shared.codec import encode_payload, open_payload
from shared.messages import Task
from shared.tensors import Subnet, Tensors

CHANGES = {"a": 1.0, "b": 2.0, "c": 6.0, "slow": 16.0}
KILLS = 2


def adding(value: float) -> Train:
    def train(tensors: Tensors, task: Task) -> bytes:
        changed = {name: array + np.asarray(value, array.dtype) for name, array in tensors.items()}
        return encode_payload(Subnet(changed), run=task.run, round=task.round, examples=1, weight=1.0)

    return train


async def test_killed_at_random_points_every_update_counts_once(system: System) -> None:
    draw, done = random.Random(1), asyncio.Event()
    system.start_broker("max_packet_size 8192", persistent=True)
    coordinator = await system.coordinator(
        devices=4,
        rounds=8,
        exports=False,
        limits={"mode": "buffered", "quorum": 2, "enough": 2, "max_staleness": 20},
    )

    def slow(tensors: Tensors, task: Task) -> bytes | None:
        return adding(CHANGES["slow"])(tensors, task) if done.is_set() or task.action == "personalize" else None

    fleet = [device(system, name, adding(CHANGES[name])) for name in "abc"]
    late = device(system, "slow", slow)
    async with running(*fleet, late):
        await late.until(lambda: bool(late.received))
        for _ in range(KILLS):
            said = len(coordinator.lines)
            for _ in range(draw.randint(1, 2)):
                await coordinator.event("accepted", since=said)
                said = len(coordinator.lines)
            await coordinator.kill()
            await coordinator.start()
            await coordinator.event("connected", since=said)
        done.set()
        await late.announce()
        await coordinator.finished()
    lines = [line for line in coordinator.journal() if line["event"] == "round"]
    assert [line["round"] for line in lines] == list(range(1, 9))
    assert all({entry["device"] for entry in line["accepted"]} <= set(line["cohort"]) for line in lines)
    assert any(entry["device"] == "slow" and entry["staleness"] > 0 for line in lines for entry in line["accepted"])
    counted = [(entry["device"], entry["start"]) for line in lines for entry in line["accepted"]]
    assert len(set(counted)) == len(counted)
    for each in [*fleet, late]:
        promised = {(each.name, r.round) for r in each.receipts if r.answers == "offer" and r.accepted}
        assert promised <= set(counted), "lost after its receipt"
    moved = 0.0
    for line in lines:
        steps = [CHANGES[entry["device"]] / np.sqrt(1 + entry["staleness"]) for entry in line["accepted"]]
        moved += float(np.mean(steps))
    run = RunDirectory(coordinator.run_dir)
    with open_payload(run.global_payload(9), limit=2**24) as payload:
        last = {name: array.copy() for name, array in payload.subnet.tensors.items()}
    for name, array in late.received[1].items():
        if array.dtype.kind == "f" and "running" not in name:
            np.testing.assert_allclose(last[name], array + moved, rtol=1e-4, atol=1e-4)
