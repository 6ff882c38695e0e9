"""An agent is killed while it trains, while it uploads, and before the last phase; started again, it goes on."""

import asyncio
import re
from pathlib import Path

import pytest
from processes import FLEET, PATIENCE_S, Agent, Coordinator, Sniffer, System
from scripted_fleet import constant, device, running

from shared.codec import decode_uplink
from shared.config import TransferSettings
from shared.messages import Chunk, Offer
from shared.topics import Topics

UP = Topics(FLEET).up("phone")
WINDOW = 2
"""Chunks under way at once: so few that most of an update is still to come when the first ones are seen."""
EXPORTED = "state/models/current/model.onnx"


async def test_killed_in_training_it_trains_again_after_its_restart(system: System) -> None:
    system.start_broker()
    coordinator = await system.coordinator(devices=2, epochs=25)
    async with running(device(system, "other", constant(1, 1))):
        phone = await system.agent("phone")
        await _training(phone)
        assert not coordinator.events("accepted", device="phone")
        await phone.kill()
        await coordinator.event("device", device="phone", online=False)  # the broker published its will
        await system.gone("fork_server")  # neither the trainer nor what it was forked from outlives the agent
        await phone.start()
        await coordinator.event("accepted", device="phone")
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert finished["reported"] == ["other", "phone"]
    _check_counted_once(coordinator)
    assert (system.folder / "devices/phone" / EXPORTED).is_file()


async def test_killed_in_its_upload_it_goes_on_with_the_missing_chunks(system: System) -> None:
    system.start_broker("max_packet_size 4096")
    sniffer = await system.sniffer()
    coordinator = await system.coordinator(devices=2, transfer=TransferSettings(stall_s=2, window=WINDOW))
    async with running(device(system, "other", constant(1, 1))):
        phone = await system.agent("phone")
        while len(_chunks(sniffer)) < 10:
            await sniffer.messages(1, UP, since=len(sniffer.seen))
        await phone.kill()
        before = _chunks(sniffer)
        (offer,) = set(_offers(sniffer))
        assert len(before) < offer.blob.chunks / 2, "it was killed too late to tell anything"
        await coordinator.event("device", device="phone", online=False)
        seen, said = len(sniffer.seen), len(phone.lines)
        await phone.start()
        await coordinator.event("accepted", device="phone")
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert finished["reported"] == ["other", "phone"]
    assert set(_offers(sniffer, since=seen)) == {offer}, "the same update is offered, not another one"
    after = _chunks(sniffer, since=seen)
    assert set(before) | set(after) == set(range(offer.blob.chunks))
    assert len(before) + len(after) <= offer.blob.chunks + 2 * WINDOW, "what had arrived was sent again"
    assert not any(re.search(r"round 1\b.*train", line) for line in phone.lines[said:]), "it trained again"
    _check_counted_once(coordinator)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "coordinator-too"])
async def test_killed_in_the_last_round_it_personalizes_when_it_is_back(system: System, restarted: bool) -> None:
    system.start_broker()
    coordinator = await system.coordinator(devices=3, epochs=500, limits={"quorum": 2})
    async with running(*(device(system, name, constant(1, 1)) for name in ("a", "b"))):
        phone = await system.agent("phone")
        await phone.says("round 1: train")
        await phone.kill()
        for name in ("a", "b"):
            await coordinator.event("reported", device=name)
        if restarted:
            await coordinator.kill()
        await phone.start()
        await phone.says("round 2: personalize")  # the broker has kept the task for it
        if restarted:
            await coordinator.start()
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert (finished["reported"], finished["failed"], finished["absent"]) == (["a", "b", "phone"], [], [])
    assert not coordinator.events("accepted", device="phone")
    assert finished["evaluation"]["accuracy"]["count"] == 3
    assert (system.folder / "devices/phone" / EXPORTED).is_file()


def _chunks(sniffer: Sniffer, since: int = 0) -> list[int]:
    """Indices of the update's chunks that the phone sent."""
    heard = [decode_uplink(payload) for payload in sniffer.below(UP, since)]
    return [message.index for message in heard if isinstance(message, Chunk)]


def _offers(sniffer: Sniffer, since: int = 0) -> list[Offer]:
    heard = [decode_uplink(payload) for payload in sniffer.below(UP, since)]
    return [message for message in heard if isinstance(message, Offer)]


def _check_counted_once(coordinator: Coordinator) -> None:
    (line,) = (line for line in coordinator.journal() if line["event"] == "round")
    assert sorted(entry["device"] for entry in line["accepted"]) == ["other", "phone"]
    assert len(coordinator.events("accepted")) == 2


async def _training(agent: Agent) -> None:
    """Return when its trainer, a child of its fork server, is there."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(_children(server) for server in _children(agent.pid)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # nobody tells of a fork


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
