"""The broker goes down in the middle of transfers, with and without a memory, and comes back on the same port."""

import asyncio

import pytest
from processes import FLEET, System
from scripted_fleet import constant, device, running

from shared.config import TransferSettings

ANSWERS = {"a": (0, 1), "b": (100, 10)}


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "forgetful"])
async def test_transfers_go_on_when_the_broker_comes_back(system: System, persistent: bool) -> None:
    broker = system.start_broker("max_packet_size 4096", persistent=persistent)
    sniffer = await system.sniffer()
    coordinator = await system.coordinator(devices=3, rounds=2, transfer=TransferSettings(stall_s=1, window=4))
    async with running(*(device(system, name, constant(*answer)) for name, answer in ANSWERS.items())):
        phone = await system.agent("phone", stall_s=1)
        for topic in (f"{FLEET}/blob/", f"{FLEET}/up/"):  # on its way down, and up
            await sniffer.messages(20, topic, since=len(sniffer.seen))
            said = len(coordinator.lines)
            if persistent:
                await asyncio.to_thread(broker.stop)
            else:
                broker.kill()
            await coordinator.event("disconnected", since=said)
            await asyncio.to_thread(broker.start)
            connected = await coordinator.event("connected", since=said)
            assert connected["session_present"] is persistent
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert finished["reported"] == ["a", "b", "phone"]
    for line in coordinator.journal()[:2]:
        assert sorted(entry["device"] for entry in line["accepted"]) == ["a", "b", "phone"]
    assert (system.folder / "devices/phone/state/models/current/model.onnx").is_file()
