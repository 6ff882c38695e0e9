"""The coordinator is killed at random points of its rounds. Nothing that was accepted is lost or counted twice."""

import random
from collections import Counter

import pytest
from processes import FLEET, Coordinator, System
from scripted_fleet import constant, device, expected_digest, running

from coordinator.checkpoints import RunDirectory
from shared.config import TransferSettings

ROUNDS = 5
KILLS = 4
MESSAGES = 100
"""A round is three offers and 63 chunks: so many are always still to come, and lead into the next round."""
ANSWERS = {"a": (0, 1), "b": (100, 10), "c": (10_000, 100)}
"""device -> (value, weight): whatever is missing, or counts twice, gives another mean."""


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_at_random_points_every_update_counts_once(system: System, seed: int) -> None:
    draw = random.Random(seed)
    system.start_broker("max_packet_size 8192", persistent=True)
    sniffer = await system.sniffer()
    coordinator = await system.coordinator(
        devices=len(ANSWERS), rounds=ROUNDS, exports=False, transfer=TransferSettings(stall_s=1, window=4)
    )
    run = (await coordinator.event("started"))["run"]
    async with running(*(device(system, name, constant(*answer)) for name, answer in ANSWERS.items())):
        said = 0
        for _ in range(KILLS):
            if draw.random() < 0.5:
                await sniffer.messages(draw.randint(1, MESSAGES), f"{FLEET}/up/", since=len(sniffer.seen))
            else:
                await _accepted(coordinator, draw.randint(1, len(ANSWERS)), since=said)
            await coordinator.kill()
            number = _check_nothing_lost(coordinator)
            said = len(coordinator.lines)
            await coordinator.start()
            resumed = await coordinator.event("started", since=said)
            assert (resumed["run"], resumed["round"]) == (run, number)
            await coordinator.event("connected", since=said)
        finished = await coordinator.finished()
    assert finished["reported"] == sorted(ANSWERS)

    *rounds, personalized = coordinator.journal()
    assert [line["round"] for line in rounds] == list(range(1, ROUNDS + 1))
    assert personalized["event"] == "personalized"
    latest = coordinator.run_dir / f"globals/{ROUNDS + 1:05}.payload"
    for line in rounds:
        assert len(line["accepted"]) == len(ANSWERS)
        assert {e["device"]: e["weight"] for e in line["accepted"]} == {n: w for n, (_, w) in ANSWERS.items()}
        expected = expected_digest(latest, run, line["round"], list(ANSWERS.values()))
        assert line["digest"] == expected, f"round {line['round']} did not end with the mean of what was accepted"
    told = Counter((event["round"], event["device"]) for event in coordinator.events("accepted"))
    assert set(told.values()) == {1}, "an update was accepted twice"


async def _accepted(coordinator: Coordinator, count: int, since: int) -> None:
    """Return as soon as so many updates were accepted: receipts, or even the close of the round, are still to come."""
    await coordinator.until(lambda: len(coordinator.events("accepted", since)) >= count)


def _check_nothing_lost(coordinator: Coordinator) -> int:
    """What was told to be accepted is on the disk, or in a closed round. The round that the run goes on with."""
    directory = RunDirectory(coordinator.run_dir)
    checkpoint = directory.peek()
    assert checkpoint is not None
    on_disk = directory.accepted(checkpoint.round)
    for event in coordinator.events("accepted"):
        assert event["round"] < checkpoint.round or event["device"] in on_disk
    closed = [event["round"] for event in coordinator.events("closed")]
    assert closed == list(range(1, checkpoint.round))[: len(closed)]
    print(f"killed in round {checkpoint.round} with {len(on_disk)} accepted")
    return checkpoint.round
