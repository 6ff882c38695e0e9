"""The coordinator is killed at random points of its rounds. Nothing that was accepted is lost or counted twice, and the
run goes on with the initial model that it began with."""

import random
from collections import Counter
from pathlib import Path

import pytest
from processes import FLEET, Coordinator, System
from scripted_fleet import constant, device, expected_digest, running

from coordinator.checkpoints import RunDirectory
from shared.chunks import describe
from shared.codec import decode_task, encode_payload
from shared.config import TransferSettings
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Subnet

ROUNDS = 5
KILLS = 4
MESSAGES = 100
"""A round is three offers and 63 chunks: so many are always still to come, and lead into the next round."""
ANSWERS = {"a": (0, 1), "b": (100, 10), "c": (10_000, 100)}
"""device -> (value, weight): whatever is missing, or counts twice, gives another mean."""


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_at_random_points_every_update_counts_once(system: System, seed: int, tmp_path: Path) -> None:
    initial = tmp_path / "trained.payload"
    initial.write_bytes(
        encode_payload(Subnet(state_tensors(build_model("digitscnn", {}, seed=99))), run="old", round=9)
    )
    draw = random.Random(seed)
    system.start_broker("max_packet_size 8192", persistent=True)
    sniffer = await system.sniffer()
    coordinator = await system.coordinator(
        devices=len(ANSWERS),
        rounds=ROUNDS,
        exports=False,
        transfer=TransferSettings(stall_s=1, window=4),
        initial=initial,
    )
    run = (await coordinator.event("started"))["run"]
    initial.unlink()
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

    named = {decode_task(task).initial for task in sniffer.below(f"{FLEET}/task/") if task}
    assert len(named) == 1, "every task of a run names the same initial model"
    (blob,) = named
    assert blob == describe(coordinator.run_dir / "initial.payload", blob.chunk if blob else 0)
    assert sniffer.below(f"{FLEET}/blob/{blob.digest}/")[-blob.chunks :] == [b""] * blob.chunks, "and it is taken back"


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
