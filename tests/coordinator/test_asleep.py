"""A device that sleeps while the coordinator is started anew."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fleet import World

from coordinator.checkpoints import Checkpoint, RunDirectory
from shared.codec import encode_message
from shared.messages import Capabilities, Presence

Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(60)


async def test_how_long_a_device_has_slept_outlives_the_coordinator(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(begin(), tmp_path)
    loop, kept, save = asyncio.get_running_loop(), asyncio.Event(), RunDirectory.save

    def watched(directory: RunDirectory, checkpoint: Checkpoint) -> None:
        save(directory, checkpoint)
        if checkpoint.asleep:
            loop.call_soon_threadsafe(kept.set)

    monkeypatch.setattr(RunDirectory, "save", watched)
    link = world.broker.link("s", None)
    await link.open()
    able = Capabilities(profile="container", train=True)
    asleep = Presence(online=False, epoch=1, asleep_s=3600.0, capabilities=able)
    await link.publish("talaria/presence/s", encode_message(asleep), retain=True)
    run = asyncio.create_task(world.coordinator().run())
    await kept.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    checkpoint = world.directory.peek()
    assert checkpoint is not None
    longer = {device: replace(sleep, since=sleep.since - 1000) for device, sleep in checkpoint.asleep.items()}
    world.directory.save(replace(checkpoint, asleep=longer))
    run = asyncio.create_task(world.coordinator().run())
    await world.until("device", 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert [event["asleep_s"] for event in world.told("device")] == pytest.approx([3600, 2600], abs=60)
