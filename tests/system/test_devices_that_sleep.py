"""Devices that sleep between tasks, as processes over a real broker: the run waits for them, and nothing is lost."""

from processes import FLEET, Agent, System
from scripted_fleet import constant, device, running

from shared.codec import decode_presence
from shared.topics import Topics

NAP_S = 3.0


async def _asleep(phone: Agent, since: int = 0) -> None:
    await phone.says("asleep for", since)


async def test_a_device_that_sleeps_takes_part_from_the_first_round_to_its_own_model(system: System) -> None:
    """Asleep when the round is opened, between the rounds, and when the last phase begins."""
    system.start_broker()
    sniffer = await system.sniffer()
    phone = await system.agent("phone", wakes_every_s=NAP_S, stall_s=0.5)
    await _asleep(phone)
    coordinator = await system.coordinator(devices=2, rounds=2, exports=False)
    async with running(device(system, "other", constant(1, 1))):
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert finished["reported"] == ["other", "phone"]
    assert len(coordinator.events("accepted", device="phone")) == 2
    assert not coordinator.events("abandoned")
    said = [decode_presence(payload) for payload in sniffer.below(Topics(FLEET).presence("phone")) if payload]
    naps = [presence.asleep_s for presence in said if not presence.online][:-1]
    assert naps  # how often it sleeps between rounds is a matter of who is faster
    assert all(nap is not None and 0 < nap <= NAP_S for nap in naps), "no false death: the will was never published"


async def test_killed_while_asleep_it_goes_on_when_it_is_started(system: System) -> None:
    system.start_broker()
    sniffer = await system.sniffer()
    phone = await system.agent("phone", wakes_every_s=NAP_S, stall_s=0.5)
    await _asleep(phone)
    await phone.kill()
    coordinator = await system.coordinator(devices=2, exports=False)
    async with running(device(system, "other", constant(1, 1))):
        await coordinator.event("device", device="phone", online=False)
        await phone.start()
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert finished["reported"] == ["other", "phone"]
    said = [decode_presence(payload) for payload in sniffer.below(Topics(FLEET).presence("phone")) if payload]
    assert [presence.online for presence in said[:3]] == [True, False, True]
    assert said[1].asleep_s is not None, "its will is not what the broker tells of a device that is killed in its sleep"


async def test_a_timer_that_starts_it_until_there_is_nothing_to_do(system: System) -> None:
    """Each awakening is a process that exits by itself; in between there is none. The broker is restarted while it
    sleeps, and keeps what waits for it."""
    broker = system.start_broker(persistent=True)
    coordinator = await system.coordinator(devices=2, exports=False)
    phone = await system.agent("phone", options=("--until-idle",), wakes_every_s=3600.0, stall_s=0.5)
    async with running(device(system, "other", constant(1, 1))):
        wakings = 0
        while not coordinator.events("reported", device="phone"):
            assert await phone.ended() == 0
            await system.gone("talaria-agent")
            wakings += 1
            assert wakings < 60
            if wakings == 1:
                broker.stop()
                broker.start()
            await phone.start()
        finished = await coordinator.finished()
    assert await phone.ended() == 0
    assert finished["reported"] == ["other", "phone"]
    assert len(coordinator.events("accepted", device="phone")) == 1
